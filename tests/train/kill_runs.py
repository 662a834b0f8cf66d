"""Kill toy runs with SIGKILL at random moments, resume them, compare with a run left alone.

Run as `python -m tests.train.kill_runs FOLDER NUMBER`; prints JSON. One process imports torch and
forks a child for each run. It waits for a child's end at most as long as the random moment says.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from triptych.checkpoint.run import list_checkpoints

from .toy import exact_lines, toy_trainer

MAX_STEPS = 24


def _fork_run(folder: Path, number: int) -> int:
    """Start a run, or go on with it, in a child; return its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            every = 1 + 2 * (number % 2)
            trainer = toy_trainer(
                folder, max_steps=MAX_STEPS, checkpoint_every_steps=every, tensorboard=True
            )
            trainer.fit(resume=True)
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _kill_once(folder: Path, number: int, delay_s: float) -> bool:
    """Start a run and kill it after `delay_s`; return whether it was still running."""
    child = _fork_run(folder, number)
    signal.sigtimedwait({signal.SIGCHLD}, delay_s)
    os.kill(child, signal.SIGKILL)
    return _wait(child) == -signal.SIGKILL


def main(folder: Path, count: int) -> None:
    """Do `count` kills and print what came of them."""
    torch.set_num_threads(1)
    toy_trainer(folder / "warm", max_steps=1).fit()  # what torch imports late, no child imports
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    started = time.perf_counter()
    assert _wait(_fork_run(folder / "whole", 0)) == 0
    duration = time.perf_counter() - started
    signal.sigtimedwait({signal.SIGCHLD}, 0)  # the end of the run above
    expected = exact_lines(folder / "whole")
    assert [line["step"] for line in expected] == list(range(1, MAX_STEPS + 1))
    choice = random.Random()
    outcome: dict[str, list] = {"killed": [], "equal": [], "steps_before_kill": []}
    for number in range(count):
        run = folder / str(number)
        killed = _kill_once(run, number, choice.uniform(0, 0.9 * duration))
        while not killed:  # this one was faster than the first: take an earlier moment
            run = run.with_name(run.name + "_again")
            duration /= 2
            killed = _kill_once(run, number, choice.uniform(0, 0.9 * duration))
        outcome["killed"].append(killed)
        outcome["steps_before_kill"].append(max(list_checkpoints(run / "checkpoints"), default=0))
        signal.sigtimedwait({signal.SIGCHLD}, 0)
        finished = _wait(_fork_run(run, number)) == 0
        signal.sigtimedwait({signal.SIGCHLD}, 0)
        outcome["equal"].append(finished and exact_lines(run) == expected)
    print(json.dumps(outcome))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
