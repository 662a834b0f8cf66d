"""Own data of 600 images: the best model by validation against that of the last step; prints JSON.

For each seed new scenes are written, and a pre-trained model is fine-tuned on them for long enough
to learn them by heart: on their captions for retrieval, or on their questions. A share of the
images is held out (`data.val_share`); the run keeps the best model by R-mean, or by VQA accuracy,
on them. Both models are then scored on 500 other scenes, which neither training nor validation has
seen. `best_over_last` is the mean over seeds of the best model's score less that of the last step.

Runs that are finished are not trained again; `benchmarks/scenes/scene_runs.py` says how.

    python -m benchmarks.scenes.best_over_last --start runs/demo/pretrain/model
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.scenes.scene_runs import DATA, train_once
from triptych.lab.statistics import mean_interval
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.scenes.config import SceneConfig
from triptych.train.metrics_log import METRICS_FILE, read_metrics
from triptych.train.validation import ValidationConfig
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.run import MODEL_FOLDER
from triptych.workflows.scene_data import format_source, write_once
from triptych.workflows.validation import BEST_FOLDER

NUM_IMAGES = 600
VAL_SHARE = 0.2
TASKS = {"retrieval": ("mplug.retrieval", "captions", "r_mean"), "vqa": ("mplug.vqa", "vqa", "vqa")}
"""Recipe, format of the scenes, and metric."""


def own_run(start: Path, source: Any, seed: int, options: argparse.Namespace) -> RunConfig:
    """Return the fine-tuning of a seed, validated twenty times."""
    config = build_recipe(TASKS[options.task][0], options.scale)
    warmup = min(config.optim.warmup_steps, max(1, options.steps // 10))
    return replace(
        config,
        model=replace(config.model, init_from=str(start)),
        data=replace(config.data, train=(source,), val_share=VAL_SHARE, seed=seed),
        validation=ValidationConfig(),
        optim=replace(config.optim, warmup_steps=warmup),
        train=replace(
            config.train,
            max_steps=options.steps,
            seed=seed,
            num_threads=options.num_threads,
            progress="plain",
        ),
    )


def measure_seed(seed: int, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Train with a seed; return both models' scores on unseen scenes."""
    _, data, metric = TASKS[options.task]
    few = options.scale == "smoke"
    folder = options.out / f"seed_{seed}"
    files = write_once(
        folder / DATA,
        options.scale,
        48 if few else NUM_IMAGES,
        num_val=8,
        num_test=12 if few else 500,
        config=SceneConfig(seed=1000 + seed),
        formats=("captions", "vqa"),
    )
    run = folder / options.task
    train_once(own_run(options.start, format_source(files, data, "train"), seed, options),
               run, console)  # fmt: skip
    test = format_source(files, data, "test")
    best, last = (
        next(
            found.value
            for found in evaluate_model(run / name, options.task, test, rerank_top_k=0)
            if found.name == metric
        )
        for name in (BEST_FOLDER, MODEL_FOLDER)
    )
    key = f"val/{metric}"
    curve = {x["step"]: x[key] for x in read_metrics(run / METRICS_FILE) if key in x}
    best_step = max(curve, key=lambda step: curve[step])
    return {"best": best, "last": last, "best_step": best_step, "validation": curve}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line names, and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--start", type=Path, required=True, help="pre-trained model folder")
    parser.add_argument("--out", type=Path, default=Path("runs/best_over_last"))
    parser.add_argument("--scale", default="tiny", help="tiny, or smoke to try the program")
    parser.add_argument("--task", default="retrieval", choices=TASKS)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--num-threads", type=int, default=None, help="CPU threads; all cores")
    options = parser.parse_args(arguments)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    console = Console(stderr=True)
    rows = [measure_seed(seed, options, console) for seed in range(options.seeds)]
    recipe, _, metric = TASKS[options.task]
    gains = [row["best"] - row["last"] for row in rows]
    found = mean_interval(gains)
    result = {
        "best_over_last": round(found.mean, 4),
        "low": None if found.low is None else round(found.low, 4),
        "high": None if found.high is None else round(found.high, 4),
        "differences": [round(gain, 4) for gain in gains],
        "best": [round(row["best"], 4) for row in rows],
        "last": [round(row["last"], 4) for row in rows],
        "best_steps": [row["best_step"] for row in rows],
        "validation": [row["validation"] for row in rows],
        "protocol": (
            f"{recipe} at scale {options.scale} from the pre-trained model, {options.steps} steps "
            f"on {NUM_IMAGES} images of which {VAL_SHARE:.0%} are held out; {metric} on 500 unseen "
            f"scenes, {options.seeds} seeds, 95 % t interval of the mean difference"
        ),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
