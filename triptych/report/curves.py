"""Points of a loss curve made fit to draw: finite, smooth, and few."""

from __future__ import annotations

import math
from collections.abc import Sequence

Points = list[tuple[float, float]]

_WINDOW_SHARE = 1 / 30
_MAX_BUCKETS = 180


def keep_finite(points: Sequence[tuple[int, float]]) -> Points:
    """Return the points that can be drawn, in the order of their steps."""
    return sorted((step, value) for step, value in points if math.isfinite(value))


def smooth(points: Points) -> Points:
    """Return moving means over a window of a thirtieth of the curve, centred at each point.

    At the start the window shrinks on both sides, so that a steep fall is not flattened; at the
    end it holds the points that there are, so that the last value is a mean too.
    """
    half = int(len(points) * _WINDOW_SHARE)
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    means = []
    for index, (step, _) in enumerate(points):
        reach = min(half, index)
        start, stop = index - reach, min(index + reach + 1, len(points))
        means.append((step, (sums[stop] - sums[start]) / (stop - start)))
    return means


def thin(points: Points) -> Points:
    """Return at most 360 points: the lowest and the highest of each bucket, in their order."""
    if len(points) <= 2 * _MAX_BUCKETS:
        return points
    size = -(-len(points) // _MAX_BUCKETS)
    kept: Points = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        ends = {min(bucket, key=lambda point: point[1]), max(bucket, key=lambda point: point[1])}
        kept.extend(sorted(ends))
    return kept
