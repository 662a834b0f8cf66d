"""Accuracy of class labels, for each class too, and the majority baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TypeVar

from triptych.core.errors import DataError

Label = TypeVar("Label", bound=Hashable)


def _check(predicted: Sequence[Hashable], labels: Sequence[Hashable]) -> None:
    """Raise DataError unless there is one prediction for each of at least one label."""
    if len(predicted) != len(labels):
        raise DataError(f"{len(predicted)} predictions but {len(labels)} labels")
    if not labels:
        raise DataError("there is no label to compare with; evaluate at least one item")


def compute_accuracy(predicted: Sequence[Hashable], labels: Sequence[Hashable]) -> float:
    """Return the share of predictions that equal their label.

    Raises:
        DataError: The lengths differ or there is no item.
    """
    _check(predicted, labels)
    return sum(p == label for p, label in zip(predicted, labels, strict=True)) / len(labels)


def compute_class_accuracies(
    predicted: Sequence[Label], labels: Sequence[Label]
) -> dict[Label, float]:
    """Return, for each class that occurs in `labels`, the share of its items that are right.

    Raises:
        DataError: The lengths differ or there is no item.
    """
    _check(predicted, labels)
    total = Counter(labels)
    right = Counter(label for guess, label in zip(predicted, labels, strict=True) if guess == label)
    return {label: right[label] / count for label, count in total.items()}


def majority_label(labels: Sequence[Label]) -> Label:
    """Return the most frequent label; of several the one that occurs first.

    Raises:
        DataError: There is no label.
    """
    if not labels:
        raise DataError("the training split has no label; the majority baseline needs one")
    return Counter(labels).most_common(1)[0][0]


def compute_majority_accuracy(
    training_labels: Sequence[Hashable], labels: Sequence[Hashable]
) -> float:
    """Return the accuracy of always answering the most frequent training label.

    Raises:
        DataError: One of the splits is empty.
    """
    guess = majority_label(training_labels)
    return compute_accuracy([guess] * len(labels), labels)
