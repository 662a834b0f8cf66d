"""What a demo is scored on, beside what guessing gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from triptych.core.outputs import MetricValue, Predictions
from triptych.data.manifest import FoundRecords, read_records
from triptych.data.records import Record
from triptych.data.source import DataSourceConfig
from triptych.demo.state import Demo, Score
from triptych.evaluation.baselines import most_frequent_caption
from triptych.evaluation.bootstrap import ratio_value
from triptych.scenes.language import compute_caption_objects, count_objects_named
from triptych.scenes.layout import SceneFiles
from triptych.serving.loading import load_model
from triptych.tasks.finetuning.captioning import caption_references
from triptych.tasks.registry import evaluations
from triptych.workflows.baselines import Baseline, baselines_of
from triptych.workflows.evaluate import evaluate_loaded
from triptych.workflows.predictors import evaluation_records
from triptych.workflows.scene_data import scene_source

SPLITS = ("test", "compositional")
"""Scenes that training never sees."""

TASKS = {
    "retrieval": "pretrain",
    "caption": "pretrain",
    "vqa": "vqa",
    "grounding": "grounding",
}
"""What the scenes are scored on, and the stage whose model is."""


def training_records(files: SceneFiles) -> dict[str, Sequence[Record]]:
    """Return what is guessed from, by task."""
    return {task: read_records(scene_source(files, task, "train")).records for task in TASKS}


def evaluate_scenes(
    demo: Demo, files: SceneFiles, split: str, train: Mapping[str, Sequence[Record]]
) -> None:
    """Score all tasks on one split of the scenes.

    Args:
        demo: Receives scores, predictions and records.
        files: The scenes.
        split: One of `SPLITS`.
        train: What `training_records` returned.
    """
    for task in TASKS:
        source = scene_source(files, task, split)
        scores = evaluate_task(demo, task, split, source, read_records(source), train[task])
        if task == "caption":
            scores = [_score_objects(demo, files, split, train[task]), *scores]
        demo.scores += scores


def evaluate_task(
    demo: Demo,
    task: str,
    split: str,
    source: DataSourceConfig,
    found: FoundRecords,
    train: Sequence[Record],
    max_bad_share: float = 0.01,
) -> list[Score]:
    """Score a task and put guesses beside the numbers.

    Args:
        demo: Receives predictions and records.
        task: One of `TASKS`.
        split: What the records are called.
        source: Where they come from.
        found: The records.
        train: Training records, that the guesses are taken from.
        max_bad_share: Share of the records that may be unusable.
    """
    records = evaluation_records(found.records, evaluations()[task], source.path)
    kept: dict[int, object] = {}
    values = evaluate_loaded(
        load_model(demo.model(TASKS[task])),
        task,
        source,
        found=found,
        rerank_top_k=demo.size.rerank_top_k,
        max_bad_share=max_bad_share,
        keep=_keeper(kept),
    )
    demo.predictions[task, split], demo.records[task, split] = kept, records
    references = caption_references(records, found.records) if task == "caption" else None
    guesses = baselines_of(task, train, records, demo.settings.seed, references=references)
    return [_score(task, split, value, guesses.get(value.name, Baseline())) for value in values]


def _score(task: str, split: str, value: MetricValue, guess: Baseline) -> Score:
    key = f"compositional_{value.name}" if split == "compositional" else value.name
    return Score(
        key=key, task=task, split=split, value=value, chance=guess.chance, blind=guess.blind
    )


def _keeper(kept: dict[int, object]) -> Callable[[Predictions], None]:
    """Return a listener that files texts and boxes by position."""

    def keep(predictions: Predictions) -> None:
        values: list[object] = []
        if predictions.texts is not None:
            values = list(predictions.texts)
        elif predictions.boxes_xyxy is not None:
            values = list(predictions.boxes_xyxy.tolist())
        kept.update(zip(predictions.index, values, strict=bool(values)))

    return keep


def scene_objects(
    records: Sequence[Record], files: SceneFiles, split: str
) -> list[list[tuple[str, str, str]]]:
    """Return (size, colour, shape) of each object of each record's image, from the truth file."""
    truth = {}
    for line in files.truth(split).read_text(encoding="utf-8").splitlines():
        scene = json.loads(line)
        truth[scene["file_name"]] = [(o["size"], o["color"], o["shape"]) for o in scene["objects"]]
    return [truth[Path(record.image.path).name] for record in records if record.image]


def _score_objects(demo: Demo, files: SceneFiles, split: str, train: Sequence[Record]) -> Score:
    """Score captions by objects; the interval resamples images."""
    records, kept = demo.records["caption", split], demo.predictions["caption", split]
    objects = scene_objects(records, files, split)
    captions = [str(kept[i]) for i in range(len(records))]
    value = ratio_value(
        "caption_objects",
        [count_objects_named(c, o) for c, o in zip(captions, objects, strict=True)],
        [len(o) for o in objects],
        "Share of the objects of an image that its caption names with the right size, colour and "
        "shape, over all objects.",
    )
    return _score("caption", split, value, _guessed_objects(train, objects, demo.settings.seed))


def _guessed_objects(
    train: Sequence[Record], objects: Sequence[list[tuple[str, str, str]]], seed: int
) -> Baseline:
    """Score a random training caption, and the most frequent one, as captions of each image."""
    captions = [r.caption for r in train if r.caption]
    total = sum(map(len, objects))
    rng = np.random.default_rng(seed)
    drawn = [captions[i] for i in rng.integers(0, len(captions), len(objects))]
    common = [most_frequent_caption(captions)] * len(objects)

    def score(said: list[str]) -> float:
        shares = compute_caption_objects(said, objects)
        return sum(s * len(o) for s, o in zip(shares, objects, strict=True)) / total

    return Baseline(chance=score(drawn), blind=score(common))
