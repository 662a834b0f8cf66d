"""What guessing gives: the numbers that a score must stand beside."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from triptych.data.images import decode_image
from triptych.data.records import Record
from triptych.evaluation.baselines import MajorityAnswers, MeanBox
from triptych.evaluation.boxes import hits_at_iou, xywh_to_xyxy
from triptych.evaluation.classification import compute_accuracy, compute_majority_accuracy
from triptych.evaluation.vqa import vqa_accuracy


@dataclass(frozen=True, slots=True)
class Baseline:
    """Two ways to guess.

    Attributes:
        chance: Drawing one training answer, box or candidate at random.
        blind: The best constant without looking at the picture.
    """

    chance: float | None = None
    blind: float | None = None


def baselines_of(
    task: str, train: Sequence[Record], records: Sequence[Record], seed: int
) -> dict[str, Baseline]:
    """Return guesses by metric name.

    Args:
        task: caption, retrieval, vqa, grounding, nlvr2 or snli_ve.
        train: Training records, that the guesses are taken from.
        records: Held-out records, that they are scored on.
        seed: Seed of the random draws.
    """
    rng = np.random.default_rng(seed)
    if task == "retrieval":
        chance = {f"{way}_r{k}{stage}": k / len(records) for way, k, stage in _RECALLS}
        return {name: Baseline(chance=min(1.0, value)) for name, value in chance.items()}
    if task == "vqa":
        return _answers(train, records, rng)
    if task == "grounding":
        return {"grounding": _boxes(train, records, rng)}
    if task in ("nlvr2", "snli_ve"):
        return {task: _labels([r.label for r in train], [r.label for r in records], rng)}
    return {}


_RECALLS = [(way, k, stage) for way in ("i2t", "t2i") for k in (1, 5, 10) for stage in ("", "_itm")]


def _answers(
    train: Sequence[Record], records: Sequence[Record], rng: np.random.Generator
) -> dict[str, Baseline]:
    """Score a random training answer, and the majority answer of the question's type."""
    majority = MajorityAnswers.fit([r.question_type for r in train], [r.answers for r in train])
    drawn = [train[i].answers[0] for i in rng.integers(0, len(train), len(records))]
    scores: dict[str, list[tuple[float, float]]] = {}
    for record, answer in zip(records, drawn, strict=True):
        pair = (
            vqa_accuracy(answer, record.answers),
            vqa_accuracy(majority.answer(record.question_type), record.answers),
        )
        scores.setdefault("vqa", []).append(pair)
        scores.setdefault(f"vqa/{record.question_type}", []).append(pair)
    return {
        name: Baseline(*(float(np.mean([pair[i] for pair in pairs])) for i in (0, 1)))
        for name, pairs in scores.items()
    }


def _labels(
    train: Sequence[Hashable], labels: Sequence[Hashable], rng: np.random.Generator
) -> Baseline:
    """Score a random training label, and the most frequent one."""
    drawn = [train[i] for i in rng.integers(0, len(train), len(labels))]
    return Baseline(
        chance=compute_accuracy(drawn, labels), blind=compute_majority_accuracy(train, labels)
    )


def _boxes(
    train: Sequence[Record], records: Sequence[Record], rng: np.random.Generator
) -> Baseline:
    """Score a random training box, and the mean training box."""
    truth = torch.tensor([r.box for r in records], dtype=torch.float64)
    sizes = torch.tensor([_size(r) for r in records], dtype=torch.float64)
    sample = [train[i] for i in rng.integers(0, len(train), len(records))]
    drawn = torch.tensor([r.box for r in sample], dtype=torch.float64)
    drawn_sizes = torch.tensor([_size(r) for r in sample], dtype=torch.float64)
    mean = MeanBox.fit(drawn, drawn_sizes).predict(sizes)
    scaled = xywh_to_xyxy(drawn) / drawn_sizes.repeat(1, 2) * sizes.repeat(1, 2)
    target = xywh_to_xyxy(truth)
    return Baseline(
        chance=float(hits_at_iou(scaled, target).double().mean()),
        blind=float(hits_at_iou(mean.double(), target).double().mean()),
    )


def _size(record: Record) -> tuple[int, int]:
    assert record.image is not None
    height, width = decode_image(record.image).shape[:2]
    return width, height
