"""Kill processes of a run under torchrun, and change their number; prints JSON.

`rank_kills`: runs on 2 processes, of which a random one gets SIGKILL at a random moment: of the
whole run, start included, or, every other time, of the steps, while checkpoints are written; how
many end bitwise as a run left alone, and leave no process behind. `elastic`: a mixture of two
sources of different sizes trains on 2, 1, 4 and 2 processes in turn, stopped by SIGTERM in the
middle of an epoch, under DDP and FSDP. The samples of each step must be those of a run on one
process that nobody stopped, each source must have given every sample equally often, and the losses
must agree to 1e-5: `elastic_wrong_steps` and `elastic_loss_gap`. Both train mPLUG with queue,
momentum teacher and hard negatives; dropout off, fp32.

    python -m benchmarks.parity.engine_kills
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.parity import sample_log
from triptych.core.config import save_yaml
from triptych.core.machine import current_commit, describe_machine
from triptych.core.registry import VARIABLE
from triptych.data.manifest import read_records
from triptych.data.source import DataSourceConfig
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.scenes.write import write_scenes
from triptych.tasks.pretraining.mplug import MPLUGPretrainingConfig
from triptych.train.config import OptimConfig
from triptych.train.metrics_log import METRICS_FILE, WALL_CLOCK_KEYS, read_metrics

NUM_KILLS, KILL_STEPS = 10, 24
ELASTIC_STEPS, BATCH = 24, 8
LEGS = ((2, 6), (1, 12), (4, 18), (2, None))
"""Processes, and the step that each stops after; None is the end."""
BOUND = 1e-5
MARK = "ENGINE_KILLS_RUN"
"""Environment variable that tells the processes of a run from all others."""


def small_config(sources: Sequence[DataSourceConfig], **train: Any) -> RunConfig:
    """Return pre-training with all that has state, on a model without dropout."""
    config = build_recipe("mplug.pretrain", "smoke")
    settings: dict[str, Any] = {
        "global_batch_size": BATCH,
        "log_every_steps": 1,
        "num_threads": 1,
        "precision": "fp32",
        "device": "cpu",
        "progress": "plain",
        "tensorboard": False,
    }
    return replace(
        config,
        data=replace(config.data, train=tuple(sources)),
        task=MPLUGPretrainingConfig(queue_size=24, momentum=0.9, alpha=0.4),
        weights=(),
        train=replace(config.train, **(settings | train)),
        # AdamW's default of 1e-8 would turn rounding of tiny gradients into steps
        optim=OptimConfig(learning_rate=1e-3, vision_learning_rate=1e-3, warmup_steps=1, eps=1e-4),
    )


def write_source(folder: Path, num_images: int) -> DataSourceConfig:
    """Write scenes with captions, and return their training split."""
    files = write_scenes(
        folder, num_images, num_val=2, num_test=2, num_compositional=2, formats=("captions",)
    )
    return DataSourceConfig(
        path=str(files.karpathy), reader="karpathy", image_root=str(files.images), split="train"
    )


def start(
    config: Path, run: Path, ranks: int, *, max_restarts: int, **variables: str
) -> subprocess.Popen[bytes]:
    """Start a run, or go on with it, under torchrun; what it prints is added to `RUN.txt`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), "--max-restarts", str(max_restarts)]
    command += ["-m", "triptych", "train", str(config), "--out", str(run), "--resume", "auto"]
    with run.with_suffix(".txt").open("ab") as said:
        return subprocess.Popen(
            command,
            stdout=said,
            stderr=said,
            env=os.environ | {"OMP_NUM_THREADS": "1", MARK: str(run)} | variables,
        )


def processes_of(run: Path) -> list[int]:
    """Return the processes of a run that `start` started and that still run, workers included."""
    mark = f"{MARK}={run}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:  # that of a zombie is empty
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def ranks_of(agent: subprocess.Popen[bytes], number: int) -> list[int]:
    """Wait for the processes that torchrun starts, and return them; none once it has ended."""
    while agent.poll() is None:
        children = [
            int(pid)
            for path in Path(f"/proc/{agent.pid}/task").glob("*/children")
            for pid in path.read_text().split()
        ]
        if len(children) == number:
            return children
        time.sleep(0.05)
    return []


def same_run(run: Path, other: Path) -> bool:
    """Return whether two runs logged the same numbers and ended with the same model, bitwise."""
    lines = [
        [{k: v for k, v in line.items() if k not in WALL_CLOCK_KEYS} for line in read_metrics(path)]
        for path in (run / METRICS_FILE, other / METRICS_FILE)
    ]
    model, expected = (load_file(path / "model" / "model.safetensors") for path in (run, other))
    return lines[0] == lines[1] and all(
        torch.equal(model[name], tensor) for name, tensor in expected.items()
    )


def kill_one(
    config: Path, run: Path, duration_s: float, draw: random.Random, *, trains: bool
) -> dict[str, Any]:
    """Kill one of two processes of a run at a random moment; return what came of it.

    Args:
        config: Of the run.
        run: Its folder.
        duration_s: The moment comes before so many seconds are over.
        draw: Gives the moment.
        trains: Whether seconds count from the first step, or from the start of torchrun.
    """
    agent = start(config, run, 2, max_restarts=3)
    while trains and agent.poll() is None and not read_metrics(run / METRICS_FILE):
        time.sleep(0.05)
    moment_s = draw.uniform(0, duration_s)
    time.sleep(moment_s)
    victims = ranks_of(agent, 2)
    rank = draw.randrange(2)
    steps = len(read_metrics(run / METRICS_FILE))
    if victims:
        os.kill(sorted(victims)[rank], signal.SIGKILL)
    code = agent.wait()
    time.sleep(1)  # a worker notices the end of its rank at once, not in no time
    left = processes_of(run)
    return {
        "killed": bool(victims),
        "from": "first step" if trains else "start",
        "seconds": round(moment_s, 1),
        "rank": rank,
        "steps": steps,
        "code": code,
        "left": len(left),
        "equal": code == 0 and not left and same_run(run, run.parent / "whole"),
    }


def count_rank_kills(folder: Path, num_kills: int = NUM_KILLS) -> list[dict[str, Any]]:
    """Return what came of each kill."""
    source = write_source(folder / "scenes", 24)
    config = small_config([source], max_steps=KILL_STEPS, checkpoint_every_steps=3)
    config = replace(config, data=replace(config.data, num_workers=1))
    file = folder / "run.yaml"
    save_yaml(config, file)
    began = time.perf_counter()
    if start(file, folder / "whole", 2, max_restarts=0).wait() != 0:
        raise RuntimeError((folder / "whole.txt").read_text())
    whole_s = time.perf_counter() - began
    training_s = read_metrics(folder / "whole" / METRICS_FILE)[-1]["elapsed_s"]
    draw, outcomes = random.Random(), []
    while len(outcomes) < num_kills:
        run = folder / f"run{len(outcomes)}_{time.monotonic_ns()}"
        trains = len(outcomes) % 2 == 0
        outcome = kill_one(file, run, training_s if trains else whole_s, draw, trains=trains)
        print(json.dumps(outcome), file=sys.stderr, flush=True)
        if outcome["killed"]:
            outcomes.append(outcome)
        else:  # it was faster than the first run
            training_s, whole_s = 0.9 * training_s, 0.9 * whole_s
    return outcomes


def train_in_legs(
    config: Path, run: Path, legs: Sequence[tuple[int, int | None]] = LEGS
) -> dict[int, list[int]]:
    """Train on a changing number of processes; return the samples of each step."""
    samples = run.with_name(f"{run.name}_samples")
    samples.mkdir()
    for ranks, stop in legs:
        # the others learn of it within the next step
        due = [] if stop is None else [[stop - (ranks > 1), ranks - 1, int(signal.SIGTERM)]]
        variables = {
            VARIABLE: sample_log.__name__,
            sample_log.FOLDER: str(samples),
            sample_log.SIGNALS: json.dumps(due),
        }
        (samples / "sent_0").unlink(missing_ok=True)
        code = start(config, run, ranks, max_restarts=0, **variables).wait()
        last = read_metrics(run / METRICS_FILE)[-1]["step"]
        print(f"{run.name}: {ranks} processes to step {last}", file=sys.stderr, flush=True)
        if (code == 0) != (stop is None) or last not in (stop, ELASTIC_STEPS):
            raise RuntimeError(run.with_suffix(".txt").read_text())
    return sample_log.read_samples(samples)


def evenly_drawn(
    samples: Mapping[int, Sequence[int]], lines: Sequence[Mapping[str, Any]], sizes: Sequence[int]
) -> bool:
    """Return whether each source has given every sample as often as any other, or once more.

    Args:
        samples: Of each step.
        lines: Of the log, one a step, whose counters tell the source of the step.
        sizes: Samples of each source.
    """
    names = [key for key in lines[0] if key.startswith("source/") and key.endswith("/steps")]
    counts = [Counter[int]() for _ in names]
    before = dict.fromkeys(names, 0)
    for line in lines:
        (number,) = (n for n, name in enumerate(names) if line[name] > before[name])
        counts[number].update(samples[line["step"]])
        before = {name: line[name] for name in names}
    for count, size in zip(counts, sizes, strict=True):
        fewest, more = divmod(count.total(), size)
        expected = Counter({fewest + 1: more}) + Counter({fewest: size - more})
        given = Counter(count[index] for index in range(size))
        if given != expected or count.keys() - set(range(size)):
            return False
    return True


def largest_gap(run: Path, whole: Path) -> float:
    """Return the largest difference of a loss of two runs, relative above 1."""
    gaps = [
        abs(line[key] - own[key]) / max(1.0, abs(own[key]))
        for line, own in zip(
            read_metrics(run / METRICS_FILE), read_metrics(whole / METRICS_FILE), strict=True
        )
        for key in own
        if key.startswith("loss/")
    ]
    return max(gaps)


def measure_elastic(folder: Path) -> dict[str, Any]:
    """Return the figures of `elastic`, and those of each parallelism under its name."""
    sources = [write_source(folder / "many", 40), write_source(folder / "few", 26)]
    sizes = [len(read_records(source).records) for source in sources]
    named = [
        replace(source, name=name, ratio=ratio)
        for source, name, ratio in zip(sources, ("many", "few"), (2.0, 1.0), strict=True)
    ]
    found: dict[str, Any] = {"samples": sizes}
    expected: dict[int, list[int]] = {}
    for name, parallel in (("whole", "ddp"), ("ddp", "ddp"), ("fsdp", "fsdp")):
        config = small_config(
            named, max_steps=ELASTIC_STEPS, checkpoint_every_steps=100, parallel=parallel
        )
        save_yaml(config, folder / f"{name}.yaml")
        legs = ((1, None),) if name == "whole" else LEGS
        samples = train_in_legs(folder / f"{name}.yaml", folder / name, legs)
        lines = read_metrics(folder / name / METRICS_FILE)
        if name == "whole":
            expected = samples
            continue
        steps = range(1, ELASTIC_STEPS + 1)
        found[name] = {
            "wrong_steps": sum(samples.get(step) != expected.get(step) for step in steps),
            "evenly_drawn": evenly_drawn(samples, lines, sizes),
            "loss_gap": largest_gap(folder / name, folder / "whole"),
        }
    ways = [found[name] for name in ("ddp", "fsdp")]
    wrong, gap = sum(way["wrong_steps"] for way in ways), max(way["loss_gap"] for way in ways)
    exact = wrong == 0 and len(expected) == ELASTIC_STEPS and all(w["evenly_drawn"] for w in ways)
    return {
        "elastic": "yes" if exact and gap <= BOUND else "no",
        "elastic_wrong_steps": wrong,
        "elastic_loss_gap": gap,
        "elastic_ways": found,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Do both, and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=("kills", "elastic"), help="leave the other out")
    options = parser.parse_args(argv)
    found: dict[str, Any] = {}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if options.only != "elastic":
            outcomes = count_rank_kills(Path(folder))
            found["rank_kills"] = sum(outcome["equal"] for outcome in outcomes)
            found["kills"] = outcomes
        if options.only != "kills":
            found |= measure_elastic(Path(folder))
    print(
        json.dumps(
            found
            | {
                "seconds": round(time.perf_counter() - began, 1),
                "commit": current_commit(),
                "machine": describe_machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
