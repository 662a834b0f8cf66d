"""Metrics of classifiers and regressors beside plain accuracy, with intervals and protocols."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from triptych.core.errors import CapabilityError, DataError
from triptych.core.outputs import MetricValue, Predictions
from triptych.evaluation import classification
from triptych.evaluation.bootstrap import (
    NUM_RESAMPLES,
    bootstrap_sums,
    interval_text,
    mean_value,
)
from triptych.evaluation.metrics import ByIndex, reference_of

Floats = npt.NDArray[np.float64]


class _OfPairs:
    """Gathers one predicted value a sample beside its reference."""

    def __init__(self, name: str, references: Mapping[int, Any], score: str) -> None:
        self.name, self._references, self._score = name, references, score
        self._found: ByIndex[Any] = ByIndex(name, len(references))

    def update(self, predictions: Predictions) -> None:
        """Take in one value of each sample of a batch."""
        if self._score not in predictions.scores:
            raise CapabilityError(f"{self.name}: the task predicts no {self._score}")
        values = predictions.scores[self._score]
        self._found.add(
            predictions.index, values.tolist() if isinstance(values, Tensor) else list(values)
        )

    def pairs(self) -> tuple[list[Any], list[Any]]:
        """Return predictions and references, in the order of the samples."""
        found = self._found.items()
        return list(found.values()), [
            reference_of(self._references, position, self.name) for position in found
        ]

    def value(
        self, name: str, sums: Floats, statistic: Callable[[Floats], Floats], protocol: str
    ) -> MetricValue:
        """Return a statistic of sums over items, with its interval."""
        low, high = bootstrap_sums(sums, statistic)
        return MetricValue(
            name=name,
            value=float(statistic(sums.sum(0))),
            low=low,
            high=high,
            num_items=len(sums),
            protocol=f"{protocol}{self._found.missing()} {interval_text()}",
        )


class BinaryMetric(_OfPairs):
    """F1 or Matthews' correlation of a positive class, as "f1" or "matthews"."""

    def __init__(
        self, labels: Mapping[int, Hashable], *, positive: Hashable, kind: str = "f1"
    ) -> None:
        """Take the right labels by position, and which of them is the positive one."""
        super().__init__(kind, labels, "label")
        self._positive = positive
        self._statistic, self._words = {
            "f1": (classification.f1_from_counts, "F1 of class"),
            "matthews": (classification.matthews_from_counts, "Matthews' correlation of class"),
        }[kind]

    def compute(self) -> list[MetricValue]:
        """Return the number."""
        predicted, labels = self.pairs()
        counts = classification.confusion(
            [label == self._positive for label in predicted],
            [label == self._positive for label in labels],
        )
        return [self.value(self.name, counts, self._statistic, f"{self._words} {self._positive}.")]


class AUROCMetric(_OfPairs):
    """Area under the ROC curve of a positive class, as "auroc"."""

    def __init__(self, labels: Mapping[int, Hashable], *, positive: Hashable) -> None:
        """Take the right labels by position, and which of them is the positive one."""
        super().__init__("auroc", labels, "positive")
        self._positive = positive

    def compute(self) -> list[MetricValue]:
        """Return the area; resamples without both classes are passed over for the interval."""
        predicted, labels = self.pairs()
        scores = np.asarray(predicted, dtype=np.float64)
        right = np.array([label == self._positive for label in labels])
        area = classification.compute_auroc(scores, right)
        low, high = _bootstrap_auroc(scores, right)
        return [
            MetricValue(
                name=self.name,
                value=area,
                low=low,
                high=high,
                num_items=len(right),
                protocol=(
                    f"Area under the ROC curve of class {self._positive}, ties count one half."
                    f"{self._found.missing()} {interval_text()}"
                ),
            )
        ]


class CorrelationMetric(_OfPairs):
    """Pearson's and Spearman's correlation, as "pearson" and "spearman"."""

    def __init__(self, values: Mapping[int, float]) -> None:
        """Take the true numbers by position."""
        super().__init__("correlation", values, "value")

    def compute(self) -> list[MetricValue]:
        """Return both; the bootstrap of Spearman's keeps the ranks of the whole set."""
        predicted, values = (np.asarray(side, dtype=np.float64) for side in self.pairs())
        ranks = [classification.average_ranks(side) for side in (predicted, values)]
        of_values = classification.moments(predicted, values)
        of_ranks = classification.moments(*ranks)
        pearson = classification.pearson_from_sums
        return [
            self.value("pearson", of_values, pearson, "Pearson's correlation."),
            self.value("spearman", of_ranks, pearson, "Spearman's correlation, ties share ranks."),
        ]


def _bootstrap_auroc(scores: Floats, right: npt.NDArray[np.bool_]) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    areas = []
    for _ in range(NUM_RESAMPLES):
        drawn = generator.integers(len(scores), size=len(scores))
        if right[drawn].any() and not right[drawn].all():
            areas.append(classification.compute_auroc(scores[drawn], right[drawn]))
    if not areas:
        raise DataError("too few samples for an interval of AUROC")
    low, high = np.percentile(areas, [2.5, 97.5])
    return float(low), float(high)


class MeanPerClassMetric(_OfPairs):
    """Mean over classes of the share of their items that are right, as "NAME_per_class".

    The protocol of Caltech-101, Pets, Aircraft and Flowers among FLAVA's probes (as for CLIP).
    Every class that an item has counts alike, however few have it.
    """

    def __init__(self, labels: Mapping[int, Hashable], name: str) -> None:
        """Take the right labels by position, and the name of the classifier's accuracy."""
        super().__init__(f"{name}_per_class", labels, "label")

    def compute(self) -> list[MetricValue]:
        """Return the number; classes that a resample lacks are not in its mean."""
        predicted, labels = self.pairs()
        names = {label: number for number, label in enumerate(dict.fromkeys(labels))}
        hits = np.array([guess == label for guess, label in zip(predicted, labels, strict=True)])
        numbers = np.array([names[label] for label in labels])
        low, high = _bootstrap_class_mean(hits, numbers)
        return [
            MetricValue(
                name=self.name,
                value=_class_mean(hits, numbers),
                low=low,
                high=high,
                num_items=len(labels),
                protocol=(
                    f"Mean over {len(names)} classes of the share of their items that are right."
                    f"{self._found.missing()} {interval_text()}"
                ),
            )
        ]


class TopKMetric:
    """Share of items whose class is among the k likeliest, as "NAME_topK".

    Among equally likely classes the first counts as likelier, as for the one that is predicted. A
    class that the classifier does not know is never among them.

    Args:
        labels: The right labels by position.
        classes: The classifier's classes, in the order of the probabilities.
        name: Of the classifier's accuracy.
        k: How many.
    """

    def __init__(
        self, labels: Mapping[int, Hashable], classes: Sequence[Hashable], name: str, k: int = 5
    ) -> None:
        self.name, self._references, self.k = f"{name}_top{k}", labels, k
        self._numbers = {label: number for number, label in enumerate(classes)}
        self._hits: ByIndex[float] = ByIndex(self.name, len(labels))

    def update(self, predictions: Predictions) -> None:
        """Take in `predictions.scores["probabilities"]` (B, C)."""
        if "probabilities" not in predictions.scores:
            raise CapabilityError(f"{self.name}: the task predicts no probabilities")
        rows = np.asarray(predictions.scores["probabilities"], dtype=np.float64)
        hits = []
        for position, row in zip(predictions.index, rows, strict=True):
            number = self._numbers.get(reference_of(self._references, int(position), self.name))
            hits.append(0.0 if number is None else float(_rank(row, number) < self.k))
        self._hits.add(predictions.index, hits)

    def compute(self) -> list[MetricValue]:
        """Return the number."""
        hits = list(self._hits.items().values())
        protocol = f"Share of items whose class is among the {self.k} likeliest."
        return [mean_value(self.name, hits, f"{protocol}{self._hits.missing()}")]


def _rank(row: Floats, number: int) -> int:
    """Return how many classes come before one of these scores (C,)."""
    return int((row > row[number]).sum() + (row[:number] == row[number]).sum())


def _class_mean(hits: npt.NDArray[np.bool_], numbers: npt.NDArray[np.int64]) -> float:
    counts = np.bincount(numbers)
    right = np.bincount(numbers, weights=hits)
    return float((right[counts > 0] / counts[counts > 0]).mean())


def _bootstrap_class_mean(
    hits: npt.NDArray[np.bool_], numbers: npt.NDArray[np.int64]
) -> tuple[float, float]:
    """Return the interval; a table of all items by all classes would be too large."""
    generator = np.random.default_rng(0)
    draws = (generator.integers(len(hits), size=len(hits)) for _ in range(NUM_RESAMPLES))
    low, high = np.percentile([_class_mean(hits[d], numbers[d]) for d in draws], [2.5, 97.5])
    return float(low), float(high)
