"""What saving costs training: blocked seconds and slower steps, mPLUG base with AdamW (4.15 GB).

In each round a step runs alone, the state is saved as Triptych 0.3 did (one file by `save_file`,
read again for its SHA-256, training waits), a step runs alone again, and the state is saved in the
background while steps go on until the checkpoint is sealed. `save_blocks_s_ratio` compares the
seconds for which the two saves block, the median over rounds after the first, in which the memory
of the copy is new; `step_during_save` is the median step that began and ended during a save over
the median quiet one. Prints JSON.

    python -m benchmarks.speed.checkpoints
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.speed.mplug_batch import VOCAB_SIZE, make_batch
from triptych.checkpoint.nested import split_tensors
from triptych.checkpoint.sharded import CheckpointWriter
from triptych.core.processes import keep_freed_memory
from triptych.core.rng import seed_step
from triptych.distributed.engine import Engine
from triptych.models.families import create_model
from triptych.models.mplug.family import MPLUG_FAMILY
from triptych.recipes.mplug import pretrain
from triptych.tasks.pretraining.mplug import OBJECTIVES, MPLUGPretraining, MPLUGPretrainingConfig
from triptych.train.optim import build_optimizer, group_parameters
from triptych.train.precision import autocast, resolve_precision
from triptych.train.state import capture_state
from triptych.train.step import backward_micro_batch, clip_gradients, finish_backward

CPU = torch.device("cpu")


class Stepper:
    """Trains mPLUG without teacher and queue: weights and AdamW's moments are all there is."""

    def __init__(self, name: str, pairs: int) -> None:
        model = create_model(name, vocab_size=VOCAB_SIZE)
        config = MPLUGPretrainingConfig(queue_size=0, momentum=0.0, alpha=0.0)
        self.task = MPLUGPretraining(model, config)
        self.task.modules.train()
        self.engine = Engine(self.task)
        optim = pretrain("base").optim
        groups = group_parameters(
            self.task.modules.named_parameters(), optim, MPLUG_FAMILY.is_vision_parameter
        )
        self.parameters = [p for group in groups for _, p in group.parameters]
        self.optimizer = build_optimizer(groups, optim)
        self.batch = make_batch(pairs, model.image_size, torch.Generator().manual_seed(0))
        self.precision = resolve_precision("auto", CPU)
        self.done = 0

    def step(self) -> float:
        """Do a step and return its seconds."""
        start = time.perf_counter()
        seed_step(0, self.done, 0)
        losses = backward_micro_batch(
            self.engine,
            self.batch,
            dict.fromkeys(OBJECTIVES, 1.0),
            share=1.0,
            context=autocast(CPU, self.precision),
        )
        reduced, values = finish_backward(self.engine, self.parameters, [losses])
        clip_gradients(reduced.gradients, values.grad_norm, 1.0, scale=1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        self.task.after_step(self.done)
        return time.perf_counter() - start

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it."""
        return capture_state(self.task, self.optimizer)


def save_as_before(folder: Path, state: dict[str, Any]) -> None:
    """Save as Triptych 0.3 did."""
    skeleton, tensors = split_tensors(state)
    folder.mkdir()
    save_file(tensors, folder / "tensors.safetensors")
    (folder / "state.json").write_text(json.dumps(skeleton), encoding="utf-8")
    for name in ("tensors.safetensors", "state.json"):
        with (folder / name).open("rb") as file:
            hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())


def seconds_of(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(stepper: Stepper, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of quiet steps, of steps during a save, and for which saves block."""
    found: dict[str, list[float]] = {
        name: [] for name in ("quiet", "during", "before", "background", "sealed_after")
    }
    writer = CheckpointWriter(folder / "checkpoints", keep=1, background=True)
    for _ in range(2):
        stepper.step()  # the first makes AdamW's moments
    for number in range(rounds):
        found["quiet"].append(stepper.step())
        state = stepper.state()
        found["before"].append(seconds_of(lambda: save_as_before(folder / "before", state)))  # noqa: B023
        shutil.rmtree(folder / "before")
        os.sync()
        found["quiet"].append(stepper.step())
        began, sealed = time.perf_counter(), folder / "checkpoints" / f"step_{number}"
        found["background"].append(seconds_of(lambda: writer.save(number, state)))  # noqa: B023
        while writer.finish() != sealed:
            seconds = stepper.step()
            if not sealed.exists():
                found["during"].append(seconds)
        found["sealed_after"].append(time.perf_counter() - began)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mplug_base_patch16_256")
    parser.add_argument("--pairs", type=int, default=2, help="of a step")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    torch.manual_seed(0)
    stepper = Stepper(options.model, options.pairs)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(stepper, Path(folder), options.rounds)
    before, background = (statistics.median(found[n][1:]) for n in ("before", "background"))
    during, quiet = (statistics.median(found[n]) for n in ("during", "quiet"))
    _, tensors = split_tensors(stepper.state())
    gigabytes = sum(tensor.nbytes for tensor in tensors.values()) / 1e9
    print(
        json.dumps(
            {
                "step_during_save": round(during / quiet, 3),
                "save_blocks_s_ratio": round(background / before, 3),
                "first_save_blocks_s_ratio": round(found["background"][0] / before, 3),
                "gigabytes": round(gigabytes, 2),
                "seconds": {n: [round(s, 2) for s in values] for n, values in found.items()},
                "protocol": f"{options.model} with AdamW, {gigabytes:.2f} GB, {options.pairs} "
                f"pairs a step in {stepper.precision}, one process, {options.rounds} rounds",
                "num_threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
