"""Gather what fine-tuned models score on the scenes, and what belongs to the papers' protocols.

Writes `benchmarks/results/tasks.json`; `gather.py` says how. The parts start from the models of
`triptych demo --scale tiny --out runs/demo`,
`python -m benchmarks.scenes.vlmo_scenes stagewise` and
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
    title="Fine-tuned models on the scenes, and the papers' protocols",
    what={
        "matrix_cells": "pairs of a family and a task that are possible, all tested",
        "nlvr2_mplug": "statements about two images judged rightly, mPLUG (chance 0.5)",
        "nlvr2_vlmo": "the same, VLMo",
        "nlvr2_flava": "the same, FLAVA",
        "snli_ve_mplug": "entailment in three classes, mPLUG (chance 0.33)",
        "snli_ve_vlmo": "the same, VLMo",
        "snli_ve_flava": "the same, FLAVA",
        "nlvr2_mplug_compositional": "statements about colour-shape pairs never seen, mPLUG",
        "nlvr2_vlmo_compositional": "the same, VLMo",
        "nlvr2_flava_compositional": "the same, FLAVA",
        "snli_ve_mplug_compositional": "entailment, colour-shape pairs never seen, mPLUG",
        "snli_ve_vlmo_compositional": "the same, VLMo",
        "snli_ve_flava_compositional": "the same, FLAVA",
        "grounding": "boxes with an IoU of at least 0.5, mPLUG",
        "grounding_compositional": "the same, on colour-shape pairs never seen",
        "caption_objects": "objects that captions name rightly after fine-tuning, mPLUG",
        "caption_objects_compositional": "the same, on colour-shape pairs never seen",
        "vqa": "VQA accuracy, generated answers, mPLUG",
        "vqa_compositional": "the same, on colour-shape pairs never seen",
        "image_classification_mplug": "class of one object, fine-tuned, mPLUG",
        "image_classification_vlmo": "the same, VLMo",
        "image_classification_flava": "the same, FLAVA",
        "image_classification_mplug_compositional": "on colour-shape pairs never seen, mPLUG",
        "image_classification_vlmo_compositional": "the same, VLMo",
        "image_classification_flava_compositional": "the same, FLAVA",
        "segmentation_miou": "mean IoU of semantic segmentation, VLMo, linear head",
        "segmentation_miou_upernet": "the same with the UPerNet-style head",
        "segmentation_blind": "mean IoU of the most frequent class everywhere",
        "video_retrieval_r1": "recall at 1 among 200 clips, zero-shot, image model",
        "video_qa": "accuracy of answers about clips, image model",
        "video_qa_blind": "accuracy of the majority answer per question type",
        "two_stage_over_plain": "speed-up of re-ranking 1,000 x 1,000, k = 64, over a plain loop",
        "best_over_last": "gain of the best model by validation over the last, 600 images",
    },
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
