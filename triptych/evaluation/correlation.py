"""Correlation of predicted with true numbers: Pearson's, and Spearman's on ranks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from triptych.core.errors import DataError

Floats = npt.NDArray[np.float64]


def average_ranks(values: npt.ArrayLike) -> Floats:
    """Return (N,) float64 ranks from 1; equal values share the mean of their ranks."""
    array = np.asarray(values, dtype=np.float64)
    _, place, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[place]
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
