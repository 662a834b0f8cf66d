"""Scores of labels and numbers: accuracy, F1, Matthews, AUROC, correlations; majority baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from triptych.core.errors import DataError

Floats = npt.NDArray[np.float64]
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


def confusion(predicted: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """Return (N, 4) float64: for each item which cell of the confusion matrix it falls into.

    The columns are true positive, false positive, false negative and true negative; F1 and Matthews
    are functions of their sums.

    Args:
        predicted: (N,) bool.
        labels: (N,) bool.

    Raises:
        DataError: The lengths differ or there is no item.
    """
    guess, right = np.asarray(predicted, dtype=bool), np.asarray(labels, dtype=bool)
    _check(list(guess), list(right))
    columns = (guess & right, guess & ~right, ~guess & right, ~guess & ~right)
    return np.stack(columns, axis=1).astype(np.float64)


def f1_from_counts(counts: Floats) -> Floats:
    """Return 2·TP / (2·TP + FP + FN) of (..., 4) counts, 0 where nothing is positive."""
    tp, fp, fn, _ = np.moveaxis(counts, -1, 0)
    total = 2 * tp + fp + fn
    found: Floats = np.divide(2 * tp, total, out=np.zeros_like(total), where=total > 0)
    return found


def matthews_from_counts(counts: Floats) -> Floats:
    """Return Matthews' correlation in [-1, 1] of (..., 4) counts.

    0 where the guesses or the labels are all the same.
    """
    tp, fp, fn, tn = np.moveaxis(counts, -1, 0)
    scale = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    found: Floats = np.divide(tp * tn - fp * fn, scale, out=np.zeros_like(scale), where=scale > 0)
    return found


def compute_f1(predicted: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the F1 of (N,) bool guesses; see `f1_from_counts`.

    Raises:
        DataError: The lengths differ or there is no item.
    """
    return float(f1_from_counts(confusion(predicted, labels).sum(0)))


def compute_matthews(predicted: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return Matthews' correlation of (N,) bool guesses; see `matthews_from_counts`.

    Raises:
        DataError: The lengths differ or there is no item.
    """
    return float(matthews_from_counts(confusion(predicted, labels).sum(0)))


def compute_auroc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the area under the ROC curve: how often a positive outscores a negative.

    A pair with equal scores counts one half (the trapezoid rule), so equal scores give 0.5.

    Args:
        scores: (N,) float, higher is more likely positive.
        labels: (N,) bool, True = positive.

    Raises:
        DataError: The lengths differ, a score is NaN, or one of the classes is absent.
    """
    values, right = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    _check(list(values), list(right))
    if np.isnan(values).any():
        raise DataError("a score is NaN; the model has diverged")
    num_positive, num_negative = int(right.sum()), int((~right).sum())
    if num_positive == 0 or num_negative == 0:
        raise DataError("AUROC compares positives with negatives, and the data has only one kind")
    ahead = average_ranks(values)[right].sum() - num_positive * (num_positive + 1) / 2
    return float(ahead / (num_positive * num_negative))


def average_ranks(values: npt.ArrayLike) -> Floats:
    """Return (N,) float64 ranks from 1; equal values share the mean of their ranks."""
    array = np.asarray(values, dtype=np.float64)
    _, position, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[position]
    return ranks


def moments(first: npt.ArrayLike, second: npt.ArrayLike) -> Floats:
    """Return (N, 6) float64 of each item: 1, x, y, x², y², x·y, with x and y centred and scaled.

    Pearson's correlation is a function of their sums; centring changes nothing but the rounding.

    Raises:
        DataError: The lengths differ, there are fewer than two items, or a number is not finite.
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise DataError(f"{x.size} predictions but {y.size} true values")
    if len(x) < 2:
        raise DataError("a correlation needs two items or more")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("a number is not finite; the model has diverged")
    x, y = _standard(x), _standard(y)
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)


def pearson_from_sums(sums: Floats) -> Floats:
    """Return Pearson's correlation in [-1, 1] of (..., 6) sums of `moments`.

    0 where one of the two is constant, which no correlation is defined for.
    """
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread_x, spread_y = n * xx - x * x, n * yy - y * y
    usable = (spread_x > 1e-9 * n * n) & (spread_y > 1e-9 * n * n)
    scale = np.sqrt(np.where(usable, spread_x * spread_y, 1.0))
    return np.where(usable, np.clip((n * xy - x * y) / scale, -1.0, 1.0), 0.0)


def compute_pearson(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Return Pearson's correlation of two (N,) sequences; 0 if one is constant.

    Raises:
        DataError: The lengths differ, there are fewer than two items, or a number is not finite.
    """
    return float(pearson_from_sums(moments(first, second).sum(0)))


def compute_spearman(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Return Spearman's correlation: Pearson's of the ranks, equal values sharing theirs.

    Raises:
        DataError: The lengths differ, there are fewer than two items, or a number is not finite.
    """
    moments(first, second)  # says what is wrong in terms of the numbers themselves
    return compute_pearson(average_ranks(first), average_ranks(second))


def _standard(values: Floats) -> Floats:
    spread = values.std()
    centred: Floats = values - values.mean()
    return centred / spread if spread > 0 else centred
