"""Kill pre-training runs with SIGKILL at random moments, resume them, compare with one left alone.

Run as `python -m tests.workflows.kills`; prints `{"resume_kills": N}` for ten runs, or as many
as its argument says. One process
imports torch and forks a child for each run; it waits for a child's end at most as long as the
random moment says.
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
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.train.toy import exact_lines
from triptych.checkpoint.run import list_checkpoints
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.models.families import VARIANTS
from triptych.models.mplug.config import MPLUGConfig
from triptych.models.mplug.family import mplug_tiny
from triptych.recipes.config import ModelSource, RunConfig
from triptych.scenes.layout import SceneFiles
from triptych.scenes.write import write_scenes
from triptych.tasks.pretraining.mplug import MPLUGPretrainingConfig
from triptych.train.config import ObjectiveWeight
from triptych.workflows.run import train_run

from .small_runs import small_run, source_of

MAX_STEPS = 8
QUEUE_SIZE = 13  # odd, and no multiple of the batch: the ring wraps inside a batch
MODEL = "mplug_tiny_dropout"


def tiny_with_dropout(
    *, image_size: int | None = None, vocab_size: int | None = None
) -> MPLUGConfig:
    """Return `mplug_tiny` with dropout: a resumed run must go on with the same random numbers."""
    config = mplug_tiny(image_size=image_size, vocab_size=vocab_size)
    return replace(
        config,
        vision=replace(config.vision, attention_dropout=0.1),
        text=replace(config.text, dropout=0.1, attention_dropout=0.1),
    )


def full_run(files: SceneFiles, **train: object) -> RunConfig:
    """Return pre-training with all that has state: four objectives, queue, momentum, dropout.

    Registers the model with dropout where that has not been done.
    """
    if MODEL not in VARIANTS.names():
        VARIANTS.register(MODEL)(tiny_with_dropout)
    source = source_of(files, "mplug.pretrain")
    options = {"max_steps": MAX_STEPS, "global_batch_size": 4, "log_every_steps": 1}
    config = small_run("mplug.pretrain", source, **(options | train))
    return replace(
        config,
        model=ModelSource(name=MODEL, image_size=32),
        image=ImageTransformConfig(),
        task=MPLUGPretrainingConfig(queue_size=QUEUE_SIZE, momentum=0.9, alpha=0.4),
        weights=tuple(ObjectiveWeight(name=name) for name in ("itc", "itm", "mlm", "prefix_lm")),
    )


def same_run(folder: Path, reference: Path) -> bool:
    """Return whether two runs logged the same numbers and ended in the same state, bitwise.

    The last checkpoint holds model, optimizer, momentum copies, queue and temperature.
    """
    last = Path("checkpoints") / f"step_{MAX_STEPS}" / "shard_00000-of-00001.safetensors"
    files = (Path("model") / "model.safetensors", last)
    return exact_lines(folder) == exact_lines(reference) and all(
        same_tensors(load_file(folder / file), load_file(reference / file)) for file in files
    )


def same_tensors(tensors: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    """Return whether names and bits agree; safetensors writes its metadata in any order."""
    return tensors.keys() == others.keys() and all(
        torch.equal(tensor, others[name]) for name, tensor in tensors.items()
    )


def count_equal_resumes(num_runs: int, folder: Path) -> int:
    """Return how many of `num_runs` killed runs end bitwise as a run that was never stopped."""
    torch.set_num_threads(1)
    files = write_scenes(folder / "scenes", 16, formats=("captions",))
    train_run(full_run(files, max_steps=1), folder / "warm")  # late imports, once for all children
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        started = time.perf_counter()
        whole = _fork_run(files, folder / "whole", every=1)
        assert _wait(whole) == 0
        duration_s = time.perf_counter() - started
        lines = exact_lines(folder / "whole")
        assert [line["step"] for line in lines] == list(range(1, MAX_STEPS + 1))
        return sum(
            _goes_on(files, folder / str(number), number, duration_s) for number in range(num_runs)
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _goes_on(files: SceneFiles, run: Path, number: int, duration_s: float) -> bool:
    """Kill a run once, let it go on to its end, and compare it."""
    every = 1 + number % 2
    moment = random.SystemRandom()
    while not _killed(_fork_run(files, run, every), moment.uniform(0, 0.9 * duration_s)):
        run = run.with_name(f"{run.name}_again")  # faster than the first: take an earlier moment
        duration_s /= 2
    step = max(list_checkpoints(run / "checkpoints"), default=0)
    equal = _wait(_fork_run(files, run, every)) == 0 and same_run(run, run.parent / "whole")
    print(f"run {number}: killed after step {step}, equal: {equal}", file=sys.stderr)
    return equal


def _fork_run(files: SceneFiles, run: Path, every: int) -> int:
    """Start a run, or go on with it, in a child; return its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            config = full_run(files, checkpoint_every_steps=every, tensorboard=True)
            train_run(config, run, resume=True)
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def _wait(child: int) -> int:
    """Wait for a child and take its signal off the queue; return its exit code."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.sigtimedwait({signal.SIGCHLD}, 0)
    return code


def _killed(child: int, delay_s: float) -> bool:
    """Kill a child after `delay_s`; return whether it was still running."""
    ended = signal.sigtimedwait({signal.SIGCHLD}, delay_s)
    os.kill(child, signal.SIGKILL)
    return _wait(child) == -signal.SIGKILL and ended is None


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps({"resume_kills": count_equal_resumes(number, Path(scratch))}))
