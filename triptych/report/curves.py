"""Read loss curves from a run's `metrics.jsonl`, and prepare them for drawing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from triptych.core.errors import DataError
from triptych.core.reading import BAD_CONTENT, MAX_DATA_BYTES, read_text

Points = list[tuple[float, float]]

_WINDOW_SHARE = 1 / 30
_MAX_BUCKETS = 180
LOSSES, VALIDATION = "loss/", "val/"
"""How the names of curves in a log begin."""


def keep_finite(points: Sequence[tuple[int, float]]) -> Points:
    """Return the points that can be drawn, in the order of their steps."""
    return sorted((step, value) for step, value in points if math.isfinite(value))


def smooth(points: Points) -> Points:
    """Return moving means over a window of a thirtieth of the curve, centred at each point.

    At the start the window shrinks on both sides, so that a steep fall is not flattened; at the
    end it holds the remaining points, so that the last value is a mean too.
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


def read_curves(path: Path, prefix: str = LOSSES) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) points of each curve of a kind, by its name without the prefix.

    Lines look like `{"step": 10, "loss/itc": 2.3, "samples_per_s": 800.0}`. An incomplete last
    line, as in a run that is still going on, is skipped.

    Args:
        path: The file.
        prefix: Which kind: `LOSSES` of training, or the numbers of `VALIDATION`.

    Raises:
        DataError: There is no such file, or a line before the last is not JSON with a `step`.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; a run writes it when it logs its first step")
    lines = read_text(path, max_bytes=MAX_DATA_BYTES).splitlines()
    series: dict[str, list[tuple[int, float]]] = {}
    for number, text in enumerate(lines, start=1):
        try:
            values = json.loads(text)
            step = int(values["step"])
        except BAD_CONTENT as error:
            if number == len(lines):
                break
            raise DataError(
                f"{path}:{number}: not a line of metrics ({error}); correct or remove it"
            ) from error
        for key, value in values.items():
            if key.startswith(prefix):
                series.setdefault(key.removeprefix(prefix), []).append((step, float(value)))
    return series
