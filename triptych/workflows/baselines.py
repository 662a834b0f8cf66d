"""What guessing gives: the numbers that a score must stand beside."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from triptych.data.images import decode_image
from triptych.data.records import Record
from triptych.evaluation import captions, ptb
from triptych.evaluation.baselines import MajorityAnswers, MeanBox, most_frequent_caption
from triptych.evaluation.boxes import hits_at_iou, iou_xyxy, xywh_to_xyxy
from triptych.evaluation.classification import compute_accuracy, compute_majority_accuracy
from triptych.evaluation.vqa import vqa_accuracy


@dataclass(frozen=True, slots=True)
class Baseline:
    """Two ways to guess.

    Attributes:
        chance: Drawing one training answer, box, caption or candidate at random.
        blind: The best constant without looking at the image.
    """

    chance: float | None = None
    blind: float | None = None


def baselines_of(
    task: str,
    train: Sequence[Record],
    records: Sequence[Record],
    seed: int,
    *,
    references: Mapping[int, Sequence[str]] | None = None,
) -> dict[str, Baseline]:
    """Return guesses by metric name.

    Args:
        task: caption, retrieval, vqa, grounding, nlvr2 or snli_ve.
        train: Training records, that the guesses are taken from.
        records: Held-out records, that they are scored on.
        seed: Seed of the random draws.
        references: Captions: all true ones of each held-out record, by position; None takes the
            record's own.
    """
    rng = np.random.default_rng(seed)
    if task == "retrieval":
        found = {f"{way}_r{k}{stage}": min(1.0, k / len(records)) for way, k, stage in _RECALLS}
        for stage in ("", "_itm"):
            six = [found[f"{way}_r{k}{stage}"] for way, k, end in _RECALLS if end == stage]
            found[f"r_mean{stage}"] = sum(six) / len(six)
        return {name: Baseline(chance=value) for name, value in found.items()}
    if task == "vqa":
        return _answers(train, records, rng)
    if task == "grounding":
        return _boxes(train, records, rng)
    if task == "caption":
        own = {i: (record.caption or "",) for i, record in enumerate(records)}
        return _captions(train, references or own, rng)
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


def _captions(
    train: Sequence[Record], references: Mapping[int, Sequence[str]], rng: np.random.Generator
) -> dict[str, Baseline]:
    """Score a random training caption, and the most frequent one, as captions of each image."""
    known = [r.caption for r in train if r.caption]
    truth = [[ptb.tokenize(text) for text in references[i]] for i in sorted(references)]
    drawn = [known[i] for i in rng.integers(0, len(known), len(truth))]
    common = [most_frequent_caption(known)] * len(truth)
    by_chance, blind = (_caption_scores(said, truth) for said in (drawn, common))
    return {name: Baseline(by_chance[name], blind[name]) for name in blind}


def _caption_scores(said: Sequence[str], truth: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return what `CaptionMetric` gives, without intervals."""
    candidates = [ptb.tokenize(text) for text in said]
    bleu = captions.compute_bleu(candidates, truth)
    scores = {f"bleu_{n}": float(one.corpus) for n, one in enumerate(bleu, start=1)}
    scores["rouge_l"] = float(captions.compute_rouge_l(candidates, truth).corpus)
    scores["cider"] = float(captions.compute_cider(candidates, truth).corpus)
    return scores


def _boxes(
    train: Sequence[Record], records: Sequence[Record], rng: np.random.Generator
) -> dict[str, Baseline]:
    """Score a random training box, and the mean of the drawn ones."""
    truth = torch.tensor([r.box for r in records], dtype=torch.float64)
    sizes = torch.tensor([_size(r) for r in records], dtype=torch.float64)
    sample = [train[i] for i in rng.integers(0, len(train), len(records))]
    drawn = torch.tensor([r.box for r in sample], dtype=torch.float64)
    drawn_sizes = torch.tensor([_size(r) for r in sample], dtype=torch.float64)
    mean = MeanBox.fit(drawn, drawn_sizes).predict(sizes).double()
    scaled = xywh_to_xyxy(drawn) / drawn_sizes.repeat(1, 2) * sizes.repeat(1, 2)
    target = xywh_to_xyxy(truth)
    return {
        name: Baseline(*(float(score(boxes, target).double().mean()) for boxes in (scaled, mean)))
        for name, score in (("grounding", hits_at_iou), ("grounding_iou", iou_xyxy))
    }


def _size(record: Record) -> tuple[int, int]:
    assert record.image is not None
    height, width = decode_image(record.image).shape[:2]
    return width, height
