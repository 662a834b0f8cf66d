"""Kill a process with SIGKILL while it saves, and look at what remains.

Run as `python -m tests.checkpoint.kill_saves NUMBER`; prints `{"save_kills": N}`, the number of
kills after which the newest checkpoint was complete and held what was saved. A kill that fell
between two saves is repeated.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from triptych.checkpoint.run import load_latest
from triptych.checkpoint.sharded import CheckpointWriter

SIZE = 1 << 21
"""Numbers in the state: 8 MiB."""


def _save_for_ever(folder: Path, end: int) -> None:
    """Save one checkpoint after another; say when the second is there."""
    writer = CheckpointWriter(folder, background=True)
    state = {"w": torch.zeros(SIZE), "value": 0}
    step = 0
    while True:
        step += 1
        state["w"].fill_(step)
        writer.save(step, state | {"value": step})
        if step == 3:
            os.write(end, b"1")


def kill_once(folder: Path, delay_s: float) -> bool | None:
    """Kill a saving process after `delay_s`; return whether a usable checkpoint is left.

    None means that no save was under way.
    """
    begin, end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _save_for_ever(folder, end)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(end)
    started = os.read(begin, 1)
    os.close(begin)
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    if not any(folder.glob(".tmp_*")):
        return None
    found = load_latest(folder)
    CheckpointWriter(folder)  # what a resumed run does first
    if not (started and killed and found) or any(folder.glob(".tmp_*")):
        return False
    step, state = found
    return state["value"] == step and torch.equal(state["w"], torch.full((SIZE,), float(step)))


def count_usable(folder: Path, count: int) -> int:
    """Return after how many of `count` kills a usable checkpoint was left."""
    torch.set_num_threads(1)
    choice = random.Random(0)
    outcomes: list[bool] = []
    for number in range(20 * count):
        outcome = kill_once(folder / str(number), choice.uniform(0, 0.2))
        outcomes += [] if outcome is None else [outcome]
        if len(outcomes) == count:
            return sum(outcomes)
    raise RuntimeError(f"only {len(outcomes)} kills fell into a save")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps({"save_kills": count_usable(Path(scratch), int(sys.argv[1]))}))
