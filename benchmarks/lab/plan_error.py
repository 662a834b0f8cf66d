"""Forecasts of `triptych plan` against measured peak memory and step time; prints one JSON line.

Each configuration is forecast twice, and measured in a third process: as `triptych plan` does it,
which measures the run's own micro-batch where a step of it is short, and `far`, from micro-batches
of at most a quarter of it. Measured memory is the peak of all that torch's CPU allocator gives out,
weights included, from before the model is built to the end of a run of `--steps` steps that saves
checkpoints (torch's profiler; Python, libraries and decoded images are not in it, nor in the
forecast that it is compared with). Measured time is the mean step of a second run of as many steps.
`plan_error` is the largest error of memory, of both forecasts, and of the step time of the first;
`far_step_time_error` is that of the second.

    python -m benchmarks.lab.plan_error
    python -m benchmarks.lab.plan_error --processor-time    # on a machine that does other work
    python -m benchmarks.lab.plan_error --batch 16 --steps 4    # quick
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch.autograd.profiler import profile

from triptych.cli.train import read_config
from triptych.core.console import Console
from triptych.recipes.changes import shortened
from triptych.recipes.config import RunConfig
from triptych.scenes.config import SceneConfig
from triptych.scenes.layout import SceneFiles
from triptych.workflows.plan import make_plan
from triptych.workflows.run import prepare_run
from triptych.workflows.scene_data import scene_source, write_once

IMAGES = 600

CONFIGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mplug.pretrain, bf16": ("caption", ("mplug.pretrain", "--train.precision", "bf16")),
    "mplug.pretrain, fp32, gradient cache of a quarter": (
        "caption",
        ("mplug.pretrain", "--train.precision", "fp32", "--task.chunk-size", "{quarter}"),
    ),
    "mplug.pretrain small, fp32, selective, 2 micro-batches": (
        "caption",
        (
            *("mplug.pretrain", "--model.name", "mplug_small", "--train.precision", "fp32"),
            *("--train.recompute", "selective", "--train.micro-batch-size", "{half}"),
        ),
    ),
    "vlmo.pretrain, bf16, full": (
        "caption",
        ("vlmo.pretrain", "--train.precision", "bf16", "--train.recompute", "full"),
    ),
    "flava.joint, fp32, 2 micro-batches": (
        "caption",
        ("flava.joint", "--train.precision", "fp32", "--train.micro-batch-size", "{half}"),
    ),
    "mplug.vqa, bf16": ("vqa", ("mplug.vqa", "--train.precision", "bf16")),
}
"""What each run reads, and its command line, with parts of the batch; scale tiny."""


def build_run(name: str, options: argparse.Namespace) -> RunConfig:
    """Return a configuration as a run of a few steps, in which all objectives take part."""
    kind, words = CONFIGS[name]
    batch, steps, data = options.batch, options.steps, options.data
    arguments = [word.format(half=batch // 2, quarter=batch // 4) for word in words]
    config = read_config([*arguments, "--train.global-batch-size", str(batch)])
    config = replace(
        shortened(config, steps, config.train.max_steps),
        data=replace(config.data, train=(scene_source(SceneFiles(data), kind, "train"),)),
    )
    return replace(config, train=replace(config.train, progress="off", tensorboard=False))


def forecast(
    name: str, options: argparse.Namespace, clock: Callable[[], float], share: int = 1
) -> dict[str, Any]:
    """Return the bytes of tensors and the seconds of a step that a plan forecasts.

    Args:
        name: Of a configuration.
        options: Of the command line.
        clock: Returns seconds.
        share: Of the run's micro-batch, the part that the measured ones may have: one such part.
    """
    config = build_run(name, options)
    micro = config.train.split_batch(1).micro_batch_size
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(
            config, Path(folder), as_given=True, most_samples=max(4, micro // share), clock=clock
        )
    return {
        "memory": plan.given.memory.tensors,
        "step_s": plan.given.step_s,
        "samples": list(plan.rehearsed.sizes),
    }


def measure(name: str, options: argparse.Namespace, clock: Callable[[], float]) -> dict[str, Any]:
    """Return the same, measured: one run for the memory, which also warms up, and one for time."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    config, silent = build_run(name, options), Console(file=io.StringIO())
    with tempfile.TemporaryDirectory() as folder:
        with profile(profile_memory=True) as watched:
            run = prepare_run(config, Path(folder) / "first", silent)
            saving = replace(run.config.train, checkpoint_every_steps=1)
            saved = replace(run.config, train=saving)  # the copy lies beside every later step
            run.trainer(saved, Path(folder) / "first", console=silent).fit()
        results: Any = watched.kineto_results
        events = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
        taken = peak = 0
        for _, size in sorted(events):
            taken += size
            peak = max(peak, taken)
        trainer = run.trainer(run.config, Path(folder) / "second", console=silent)
        began: list[float] = []
        ends: list[float] = []

        def mark(part: str) -> None:
            if part == "data" and len(began) == len(ends):
                began.append(clock())
            elif part == "end":
                ends.append(clock())

        trainer.mark = mark
        trainer.fit()
    seconds = [end - start for start, end in zip(began, ends, strict=True)]
    return {"memory": peak, "step_s": sum(seconds) / len(seconds)}


WHAT = {"forecast": forecast, "far": partial(forecast, share=4), "measure": measure}
"""What is done in a process of its own."""


def compare(name: str, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return a configuration's forecasts, what was measured, and the errors as shares."""
    found = {}
    for what in WHAT:
        command = [sys.executable, "-m", "benchmarks.lab.plan_error", "--only", what, name]
        command += ["--data", str(data), "--batch", str(options.batch)]
        command += ["--steps", str(options.steps)]
        command += ["--processor-time"] if options.processor_time else []
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[what] = json.loads(done.stdout.splitlines()[-1])
    errors = {
        what: {key: found[what][key] / found["measure"][key] - 1 for key in ("memory", "step_s")}
        for what in ("forecast", "far")
    }
    return {"config": name, **found, "error": errors}


def main() -> None:
    """Forecast and measure all configurations, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--only", nargs=2, metavar=("WHAT", "CONFIG"))
    parser.add_argument("--configs", nargs="*", default=list(CONFIGS))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    clock = time.process_time if options.processor_time else time.perf_counter
    if options.only is not None:
        what, name = options.only
        print(json.dumps(WHAT[what](name, options, clock)))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or Path(folder)
        write_once(
            data,
            "smoke",
            IMAGES,
            num_val=8,
            num_test=8,
            config=SceneConfig(),
            formats=("captions", "vqa"),
        )
        rows = [compare(name, data, options) for name in options.configs]
    memory = max(abs(row["error"][what]["memory"]) for row in rows for what in ("forecast", "far"))
    near, far = (
        max(abs(row["error"][what]["step_s"]) for row in rows) for what in ("forecast", "far")
    )
    print(
        json.dumps(
            {
                "plan_error": max(memory, near),
                "memory_error": memory,
                "step_time_error": near,
                "far_step_time_error": far,
                "clock": "processor" if options.processor_time else "wall",
                "configs": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
