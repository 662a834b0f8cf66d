"""Fine-tune pre-trained models as classifiers of images and of pixels on the scenes; prints JSON.

Each family learns the shapes of 4,800 close-ups by `classify.images`; VLMo learns the shape at each
pixel of 24,000 scenes by `vlmo.segmentation`, once with a linear head and once with UPerNet's. The
scores are those of 500 unseen images of `test`, and of `compositional`, whose shapes never had
these colours in training. `benchmarks/scenes/tasks.py` says where the models come from, and what
`processor_minutes` is: here the longest of the runs of each kind.

    python -m benchmarks.scenes.image_tasks
    python -m benchmarks.scenes.image_tasks --num-threads 1 --vlmo runs/mine/model
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

from benchmarks.scenes.scene_runs import DATA
from benchmarks.scenes.tasks import FAMILIES, SPLITS, STARTS, processor_minutes
from triptych.core.outputs import MetricValue
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.scenes.config import SceneConfig
from triptych.scenes.layout import SceneFiles
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.run import MODEL_FOLDER
from triptych.workflows.scene_data import format_source, write_once

SHAPE = "_(.+)$"
"""What of a close-up's class, such as red_circle, is to be learned."""

STEPS = {"classify.images": 2500, "vlmo.segmentation": 300}
"""Of the runs at scale tiny."""

NUM_SCORED = 500
SCENES_PER_CLOSE_UP = 5
HEADS = {"linear": "", "upernet": "_upernet"}
"""Ends of the figures' names by head."""


def num_steps(recipe: str, options: argparse.Namespace) -> int:
    """Return how long a recipe's run is."""
    if options.steps is not None:
        return int(options.steps)
    own = build_recipe(recipe, options.scale).train.max_steps
    return STEPS[recipe] if options.scale == "tiny" else own


def tuned(config: RunConfig, start: Path, options: argparse.Namespace) -> RunConfig:
    """Return a run from a pre-trained model."""
    steps = num_steps(config.recipe, options)
    train = config.train
    train = replace(train, max_steps=steps, num_threads=options.num_threads, progress="plain")
    model = replace(config.model, init_from=str(start))
    optim = replace(config.optim, warmup_steps=min(config.optim.warmup_steps, train.max_steps))
    return replace(config, model=model, train=train, optim=optim)


def trained(
    config: RunConfig, files: SceneFiles, kind: str, options: argparse.Namespace, name: str
) -> tuple[Path, float | None]:
    """Train on a format of the scenes; return the model folder and the processor minutes."""
    source = format_source(files, kind, "train")
    config = replace(config, data=replace(config.data, train=(source,)))
    folder = options.out / name
    minutes = processor_minutes(config, folder, Console(stderr=True))
    return folder / MODEL_FOLDER, minutes


def scores(
    model: Path, files: SceneFiles, kind: str, task: str, split: str
) -> dict[str, MetricValue]:
    """Return the scores of a split by name."""
    source = format_source(files, kind, split)
    return {v.name: v for v in evaluate_model(model, task, source, limit=NUM_SCORED)}


def classify(files: SceneFiles, options: argparse.Namespace) -> tuple[dict[str, Any], list[Any]]:
    """Return the accuracies of each family, with what is beside them, and the minutes."""
    found: dict[str, Any] = {}
    minutes = []
    for family in FAMILIES:
        config = build_recipe("classify.images", options.scale)
        config = replace(config, task=replace(config.task, label_pattern=SHAPE))
        config = tuned(config, getattr(options, family), options)
        key = f"image_classification_{family}"
        model, took = trained(config, files, "classes", options, key)
        minutes.append(took)
        for split in SPLITS:
            values = scores(model, files, "classes", "image_classification", split)
            first, end = values["image_classification"], "" if split == "test" else f"_{split}"
            found[f"{key}{end}"] = round(first.value, 4)
            found[f"{key}{end}_interval"] = [round(first.low, 4), round(first.high, 4)]
            per_class = values["image_classification_per_class"].value
            found[f"{key}{end}_per_class"] = round(per_class, 4)
    return found, minutes


def segment(files: SceneFiles, options: argparse.Namespace) -> tuple[dict[str, Any], list[Any]]:
    """Return the mean IoUs of VLMo with each head, and the minutes."""
    found: dict[str, Any] = {}
    minutes = []
    for head, end in HEADS.items():
        config = build_recipe("vlmo.segmentation", options.scale)
        config = replace(config, task=replace(config.task, head=head))
        config = tuned(config, options.vlmo, options)
        model, took = trained(config, files, "masks", options, f"segmentation_{head}")
        minutes.append(took)
        for split in SPLITS:
            values = scores(model, files, "masks", "segmentation", split)
            name = f"segmentation_miou{end}" + ("" if split == "test" else f"_{split}")
            found[name] = round(values["miou"].value, 4)
            found[f"{name}_interval"] = [
                round(values["miou"].low, 4),
                round(values["miou"].high, 4),
            ]
            found[name.replace("miou", "pixel_accuracy")] = round(values["pixel_accuracy"].value, 4)
            if split == "test":
                found["segmentation_blind"] = round(values["miou_majority"].value, 4)
    return found, minutes


def longest(minutes: Sequence[float | None]) -> float | None:
    """Return the longest run's minutes; None where one is not known."""
    known = [value for value in minutes if value is not None]
    return round(max(known), 1) if len(known) == len(minutes) else None


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train and score everything."""
    few = options.scale == "smoke"
    files = write_once(
        options.out / DATA,
        options.scale,
        120 if few else 24_000,
        num_val=8,
        num_test=SCENES_PER_CLOSE_UP * (8 if few else NUM_SCORED),
        config=SceneConfig(),
        formats=("captions", "classes", "masks"),
    )
    classified, classify_minutes = classify(files, options)
    segmented, segment_minutes = segment(files, options)
    steps = [num_steps(recipe, options) for recipe in STEPS]
    return {
        **classified,
        **segmented,
        "processor_minutes": longest([*classify_minutes, *segment_minutes]),
        "classification_minutes": longest(classify_minutes),
        "segmentation_minutes": longest(segment_minutes),
        "protocol": (
            f"from the pre-trained models: classify.images, {steps[0]} steps on the shapes of "
            f"close-ups, and vlmo.segmentation, {steps[1]} steps at 128 px, at scale "
            f"{options.scale}; {NUM_SCORED} unseen images each, masks at their own 64 px"
        ),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for family in FAMILIES:
        said = f"pre-trained model folder of {family}"
        parser.add_argument(f"--{family}", type=Path, default=STARTS[family], help=said)
    parser.add_argument("--out", type=Path, default=Path("runs/image_tasks_bench"))
    parser.add_argument("--scale", default="tiny", help="tiny, or smoke to try the program")
    parser.add_argument("--steps", type=int, default=None, help="of every run; STEPS if absent")
    parser.add_argument("--num-threads", type=int, default=None, help="CPU threads; all cores")
    options = parser.parse_args(arguments)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    print(json.dumps(measure(options)))


if __name__ == "__main__":
    main()
