"""Peak memory of a pre-training step at base size with activation checkpointing over without.

Each way runs in a process of its own: two optimizer steps (weights, gradients, AdamW's moments and
the momentum encoders included), then the highest resident memory that the system saw. The losses of
both must be bitwise equal. Prints JSON, with the time of a step, which recomputation makes longer.

    python -m benchmarks.speed.mplug_checkpointing
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.speed.mplug_step import CPU, Stepper
from triptych.core.errors import DataError
from triptych.core.processes import keep_freed_memory
from triptych.core.rng import seed_step
from triptych.distributed.engine import Engine
from triptych.tasks.pretraining.mplug import OBJECTIVES
from triptych.train.precision import autocast, resolve_precision
from triptych.train.step import backward_micro_batch, set_recompute

MIB = 2**20
STEPS = 2


def peak_mib() -> float:
    """Return the highest resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def measure(micro_batch_size: int, *, checkpointing: bool) -> dict[str, Any]:
    """Do the steps and return losses, memory and time."""
    seed_step(0, 0, 0)
    keep_freed_memory()
    stepper = Stepper(micro_batch_size, 1)
    if checkpointing:
        set_recompute(stepper.fast.modules, "full")
    precision = resolve_precision("auto", CPU)
    stepper.fast.modules.train()
    losses, seconds = [], []
    for _ in range(STEPS):
        start = time.perf_counter()
        found = backward_micro_batch(
            Engine(stepper.fast),
            stepper.batches[0],
            dict.fromkeys(OBJECTIVES, 1.0),
            share=1.0,
            context=autocast(CPU, precision),
        )
        stepper.finish_step()
        seconds.append(time.perf_counter() - start)
        losses.append({name: float(loss).hex() for name, loss in found.items()})
    return {
        "peak_mib": round(peak_mib(), 1),
        "step_s": round(seconds[-1], 3),
        "losses": losses,
        "precision": precision,
        "num_threads": torch.get_num_threads(),
    }


def run_child(micro_batch_size: int, threads: int | None, *, checkpointing: bool) -> dict[str, Any]:
    """Measure one way in a process of its own.

    Raises:
        DataError: It failed.
    """
    arguments = ["-m", "benchmarks.speed.mplug_checkpointing", "--child", str(int(checkpointing))]
    arguments += ["--micro-batch", str(micro_batch_size)]
    arguments += ["--num-threads", str(threads)] if threads else []
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DataError(f"python {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--micro-batch", type=int, default=8, help="pairs")
    parser.add_argument("--num-threads", type=int, default=None, help="threads of torch; all cores")
    parser.add_argument("--child", type=int, choices=(0, 1), help="measure one way only")
    options = parser.parse_args(arguments)
    if options.child is not None:
        if options.num_threads is not None:
            torch.set_num_threads(options.num_threads)
        print(json.dumps(measure(options.micro_batch, checkpointing=bool(options.child))))
        return
    without, with_it = (
        run_child(options.micro_batch, options.num_threads, checkpointing=way)
        for way in (False, True)
    )
    if without["losses"] != with_it["losses"]:
        raise DataError(f"the losses differ: {without['losses']} and {with_it['losses']}")
    print(
        json.dumps(
            {
                "checkpointing_memory_ratio": round(with_it["peak_mib"] / without["peak_mib"], 3),
                "time_ratio": round(with_it["step_s"] / without["step_s"], 2),
                "losses_bitwise_equal": True,
                "peak_mib": {"without": without["peak_mib"], "with": with_it["peak_mib"]},
                "step_s": {"without": without["step_s"], "with": with_it["step_s"]},
                "micro_batch": options.micro_batch,
                "steps": STEPS,
                "precision": without["precision"],
                "num_threads": without["num_threads"],
            }
        )
    )


if __name__ == "__main__":
    main()
