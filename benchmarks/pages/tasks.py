"""Gather what fine-tuned models score on the scenes, and what belongs to the papers' protocols.

Writes `benchmarks/results/tasks.json`; `gather.py` says how. The parts start from the models of
`triptych demo --out runs/demo`, `python -m benchmarks.scenes.vlmo_scenes stagewise` and
`python -m benchmarks.scenes.flava_scenes joint`.

    python -m benchmarks.pages.tasks
    python -m benchmarks.pages.tasks --only nlvr2_vlmo
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.pages.gather import Bar, Benchmark, Part, at_least, build_parser, gather
from triptych.core.errors import DataError

FAMILIES = ("mplug", "vlmo", "flava")
TUNE = ("-m", "benchmarks.scenes.tasks")
IMAGE = ("-m", "benchmarks.scenes.image_tasks")


def read_whole(code: int, output: str) -> dict[str, Any]:
    """Return the number of cells of a table that is printed as one JSON value.

    Raises:
        DataError: The program failed.
    """
    if code != 0:
        raise DataError(f"exit code {code}")
    found: dict[str, Any] = json.loads(output)
    return {"matrix_cells": found["matrix_cells"]}


def tuned(key: str) -> Part:
    """Return the part that fine-tunes for a task and scores both splits."""
    return Part(key, (*TUNE, key), (key, f"{key}_compositional"))


def above(key: str, blind: str, gain: float) -> Bar:
    """Return the target of a figure that should exceed another."""
    return Bar(f">= {blind} + {gain:g}", lambda values: bool(values[key] >= values[blind] + gain))


CLASSIFIED = tuple(f"image_classification_{family}" for family in FAMILIES)

TASKS = Benchmark(
    name="tasks",
    prefix="tasks_",
    details=("low", "high", "blind", "processor_minutes", "range", "largest_gap", "differences"),
    parts=(
        Part("matrix", ("-m", "triptych", "tasks", "--json"), ("matrix_cells",), read_whole),
        *(tuned(f"nlvr2_{family}") for family in FAMILIES),
        *(tuned(f"snli_ve_{family}") for family in FAMILIES),
        tuned("grounding"),
        tuned("caption_objects"),
        tuned("vqa"),
        Part(
            "image",
            IMAGE,
            (
                *CLASSIFIED,
                *(f"{key}_compositional" for key in CLASSIFIED),
                *("segmentation_miou", "segmentation_miou_upernet", "segmentation_blind"),
            ),
        ),
        Part(
            "video",
            ("-m", "benchmarks.scenes.video"),
            ("video_retrieval_r1", "video_qa", "video_qa_blind"),
        ),
        Part("two_stage", ("-m", "benchmarks.speed.two_stage"), ("two_stage_over_plain",)),
        Part("best_over_last", ("-m", "benchmarks.scenes.best_over_last"), ("best_over_last",)),
    ),
    bars={
        **{f"nlvr2_{family}": at_least(f"nlvr2_{family}", 0.70) for family in FAMILIES},
        **{f"snli_ve_{family}": at_least(f"snli_ve_{family}", 0.80) for family in FAMILIES},
        "grounding": at_least("grounding", 0.75),
        "caption_objects": at_least("caption_objects", 0.85),
        "vqa": at_least("vqa", 0.80),
        **{key: at_least(key, 0.98) for key in CLASSIFIED},
        "segmentation_miou": above("segmentation_miou", "segmentation_blind", 0.30),
        "segmentation_miou_upernet": above("segmentation_miou_upernet", "segmentation_blind", 0.30),
        "video_retrieval_r1": at_least("video_retrieval_r1", 0.40),
        "video_qa": above("video_qa", "video_qa_blind", 0.10),
        "two_stage_over_plain": at_least("two_stage_over_plain", 3.5),
        "best_over_last": Bar("> 0", lambda values: bool(values["best_over_last"] > 0)),
    },
)


def main(arguments: Sequence[str] | None = None) -> int:
    return gather(TASKS, build_parser(TASKS, __doc__).parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
