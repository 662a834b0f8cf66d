"""Children that train, killed and resumed, and whether two runs are the same, byte by byte.

One process imports torch and forks a child for each run, which is ten times as fast as to start
Python again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tests.train.toy import exact_lines, toy_batches, toy_trainer
from triptych.checkpoint.run import SEAL, list_checkpoints
from triptych.core.errors import TriptychError
from triptych.train.interrupts import TrainingInterrupted

MAX_STEPS = 24
USER_ERROR = 2


def train_toy(folder: Path, *, every: int = 1, pause_s: float = 0.0, batches=toy_batches) -> None:
    """Train the toy to its last step, from where its folder stands.

    Args:
        folder: Of the run.
        every: Steps between two checkpoints.
        pause_s: How long each step waits for its batch.
        batches: Yields them.
    """

    def slow(start: int):
        for batch in batches(start):
            time.sleep(pause_s)
            yield batch

    settings = {"max_steps": MAX_STEPS, "checkpoint_every_steps": every, "tensorboard": True}
    toy_trainer(folder, batches=slow, **settings).fit(resume=True)


def warm_up(folder: Path) -> float:
    """Import what torch imports late; train the whole run, and return how long that took."""
    torch.set_num_threads(1)
    train_toy(folder / "warm")
    started = time.perf_counter()
    assert wait(fork(lambda: train_toy(folder / "whole"))) == 0
    return time.perf_counter() - started


def fork(work: Callable[[], object], said: Path | None = None) -> int:
    """Do something in a child; return its process id.

    Its exit code is 0, that of the signal that it was stopped by, `USER_ERROR` for an error that
    tells the user what to do, and 1 for any other.

    Args:
        work: What it does.
        said: Receives the error's class and message as JSON.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()
        code = 0
    except TrainingInterrupted as stop:
        code = stop.exit_code
    except KeyboardInterrupt:
        code = 130
    except BaseException as error:
        code = USER_ERROR if isinstance(error, TriptychError) else 1
        if said is not None:
            said.write_text(json.dumps([type(error).__name__, str(error)]))
        if code == 1:
            traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """Wait for a child and return its exit code; the negative number of a signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_until(child: int, is_time: Callable[[], bool], limit_s: float = 60.0) -> bool:
    """Wait for a moment; return whether it came before the child ended.

    The child is left to be waited for.
    """
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if is_time():
            return True
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        time.sleep(0.001)
    raise RuntimeError(f"process {child} neither ended nor came to the moment in {limit_s} s")


def kill_all(children: Sequence[int]) -> list[int]:
    """End children with SIGKILL; return their exit codes."""
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return [wait(child) for child in children]


def partials(folder: Path) -> list[str]:
    """Return the names of files and folders that are no whole ones."""
    found = [*folder.rglob(".tmp_*"), *folder.rglob(".*.tmp*"), *folder.rglob(".*.old*")]
    return sorted({str(path.relative_to(folder)) for path in found})


def same_toy(run: Path, whole: Path) -> bool:
    """Return whether two runs logged the same numbers, saved the same bytes and left no parts."""
    seals = []
    for folder in (run, whole):
        steps = list_checkpoints(folder / "checkpoints")
        if steps[-1:] != [MAX_STEPS]:
            return False
        seal = json.loads((folder / "checkpoints" / f"step_{MAX_STEPS}" / SEAL).read_text())
        seals.append(seal["files"])
    return seals[0] == seals[1] and exact_lines(run) == exact_lines(whole) and not partials(run)


def content_of(path: Path) -> bytes:
    """Return the bytes of a file, without the commit that a card names: it may change meanwhile."""
    lines = path.read_bytes().splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith(b"Code: commit"))
