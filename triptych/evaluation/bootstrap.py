"""Bootstrap 95 % intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13).

Items are resampled with replacement; the interval lies between the 2.5 and 97.5 percentiles of
the statistic. Every item counts as independent: five captions of one image are five items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from triptych.core.errors import DataError
from triptych.core.outputs import MetricValue

Array = npt.NDArray[np.float64]
NUM_RESAMPLES = 1000
_CELLS_AT_ONCE = 4_000_000


def bootstrap_sums(
    items: npt.ArrayLike,
    statistic: Callable[[Array], Array],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[float, float]:
    """Return the 95 % interval of a statistic that is a function of sums over items.

    Args:
        items: (N, K) numbers of each item.
        statistic: From (R, K) sums over N drawn items, for R resamples, to (R,) values.
        seed: Seed of the draws; equal seeds give equal intervals.
        num_resamples: How many resamples.

    Returns:
        The lower and the upper end.

    Raises:
        DataError: There is no item.
    """
    values = [statistic(sums) for sums in _resampled_sums(items, seed, num_resamples)]
    return _percentiles(np.concatenate(values))


def _resampled_sums(items: npt.ArrayLike, seed: int, num_resamples: int) -> Iterator[Array]:
    """Yield (R, K) sums over N drawn items, `num_resamples` rows in all."""
    table = np.asarray(items, dtype=np.float64)
    num_items = len(table)
    if num_items == 0:
        raise DataError("there is no item to compute an interval over; evaluate at least one")
    generator = np.random.default_rng(seed)
    at_once = max(1, min(num_resamples, _CELLS_AT_ONCE // num_items))
    for start in range(0, num_resamples, at_once):
        rows = min(at_once, num_resamples - start)
        drawn = generator.integers(num_items, size=(rows, num_items))
        drawn += np.arange(rows)[:, None] * num_items
        counts = np.bincount(drawn.ravel(), minlength=rows * num_items)
        yield counts.reshape(rows, num_items).astype(np.float64) @ table


def _percentiles(values: Array) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def bootstrap_interval(
    values: npt.ArrayLike, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """Return the 95 % interval of a mean.

    Args:
        values: (N,) one number an item.
        seed: Seed of the draws.
        num_resamples: How many resamples.

    Returns:
        The lower and the upper end.

    Raises:
        DataError: There is no item.
    """
    column = np.asarray(values, dtype=np.float64).reshape(-1, 1)
    size = max(1, len(column))
    return bootstrap_sums(
        column, lambda sums: sums[:, 0] / size, seed=seed, num_resamples=num_resamples
    )


def mean_value(
    name: str, values: Sequence[float] | npt.ArrayLike, protocol: str, *, seed: int = 0
) -> MetricValue:
    """Return the mean over items with its interval.

    Args:
        name: Key of the metric.
        values: (N,) one number an item.
        protocol: How the numbers were computed, in one sentence.
        seed: Seed of the bootstrap.

    Returns:
        The mean, its 95 % interval and the protocol, which also names the interval.

    Raises:
        DataError: There is no item.
    """
    array = np.asarray(values, dtype=np.float64)
    low, high = bootstrap_interval(array, seed=seed)
    return MetricValue(
        name=name,
        value=float(array.mean()),
        low=low,
        high=high,
        num_items=len(array),
        protocol=f"{protocol} {interval_text()}",
    )


def mean_of_means(
    name: str, groups: Sequence[npt.ArrayLike], protocol: str, *, seed: int = 0
) -> MetricValue:
    """Return the mean of the means of several groups of items, each resampled by itself.

    Args:
        name: Key of the metric.
        groups: (N,) one number an item, for each group; groups may differ in size.
        protocol: How the numbers were computed, in one sentence.
        seed: Seed of the bootstrap.

    Raises:
        DataError: A group has no item.
    """
    columns = [np.asarray(group, dtype=np.float64).reshape(-1, 1) for group in groups]
    drawn = [
        np.concatenate(list(_resampled_sums(column, seed + number, NUM_RESAMPLES))) / len(column)
        for number, column in enumerate(columns)
    ]
    low, high = _percentiles(np.mean(drawn, axis=0)[:, 0])
    return MetricValue(
        name=name,
        value=float(np.mean([column.mean() for column in columns])),
        low=low,
        high=high,
        num_items=sum(map(len, columns)),
        protocol=f"{protocol} {interval_text()}",
    )


def ratio_value(
    name: str,
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    protocol: str,
    *,
    seed: int = 0,
) -> MetricValue:
    """Return a ratio of two sums over items with its interval, such as objects found of all.

    The parts of an item, such as the objects of one image, are not independent: the items are
    what is resampled.

    Args:
        name: Key of the metric.
        numerators: (N,) one number an item.
        denominators: (N,) one positive number an item.
        protocol: How the numbers were computed, in one sentence.
        seed: Seed of the bootstrap.

    Raises:
        DataError: There is no item.
    """
    table = np.stack([np.asarray(c, np.float64) for c in (numerators, denominators)], axis=1)
    low, high = bootstrap_sums(table, lambda sums: sums[:, 0] / sums[:, 1], seed=seed)
    return MetricValue(
        name=name,
        value=float(table[:, 0].sum() / table[:, 1].sum()),
        low=low,
        high=high,
        num_items=len(table),
        protocol=f"{protocol} {interval_text()}",
    )


def interval_text(num_resamples: int = NUM_RESAMPLES) -> str:
    """Return the sentence that says how an interval was made."""
    return f"Interval: 95 % percentile bootstrap over items, {num_resamples} resamples."
