"""Images that show the same: found by their hashes, decided by their small versions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray

from triptych.data.doctor.looks import SIDE, Looks

MAX_DISTANCE = 16
"""Bits of 64 in which the hashes of copies may differ; a crop of 5 % changes about 8."""

MIN_CORRELATION = 0.94
"""Of the small versions of copies, once they are aligned."""

ROUGH_CORRELATION = 0.7
"""Pairs below it are not aligned: a crop of 5 % leaves more."""

ROWS, COLUMNS = 256, 65_536
CANDIDATES = 4096
CROPS = ((0.0, 0.05), (0.025, 0.025), (0.05, 0.0), (0.05, 0.05))
"""What a copy may have lost on both sides of an axis, in shares of it."""

Pairs = NDArray[np.int64]


def near_pairs(looks: Looks, against: Looks | None = None) -> Pairs:
    """Return the pairs (P, 2) of images that show the same, mirrored or not.

    Images may be scaled, compressed, mirrored, and cropped by up to 5 % at any side. All pairs of
    hashes are compared: a million images take 5e11 comparisons.

    Args:
        looks: Of the images.
        against: Of other images; None compares the images with each other, the first of a pair
            before the second.
    """
    small = looks.small()
    other = small if against is None else against.small()
    found = [np.empty((0, 2), np.int64)]
    for pairs, is_mirrored in _candidates(looks, against):
        for start in range(0, len(pairs), CANDIDATES):
            part = pairs[start : start + CANDIDATES]
            first, second = small[part[:, 0]], other[part[:, 1]]
            if is_mirrored:
                second = second[:, :, ::-1]
            found.append(part[_correlations(first, second) >= MIN_CORRELATION])
    return np.unique(np.concatenate(found), axis=0)


def groups_of(pairs: Pairs) -> list[list[int]]:
    """Return the connected groups of pairs, each in order, by their first members."""
    parent: dict[int, int] = {}

    def root(number: int) -> int:
        while parent.setdefault(number, number) != number:
            parent[number] = number = parent[parent[number]]
        return number

    for first, second in pairs.tolist():
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for number in sorted(parent):
        groups.setdefault(root(number), []).append(number)
    return list(groups.values())


def _candidates(looks: Looks, against: Looks | None) -> Iterator[tuple[Pairs, bool]]:
    """Yield pairs whose hashes are near, and whether the second image is mirrored."""
    for is_mirrored in (False, True):
        others = looks if against is None else against
        columns = others.mirrored if is_mirrored else others.hashes
        for row in range(0, len(looks), ROWS):
            rows = looks.hashes[row : row + ROWS]
            for column in range(0 if against else row, len(columns), COLUMNS):
                part = columns[column : column + COLUMNS]
                near = np.bitwise_count(rows[:, None] ^ part[None]) <= MAX_DISTANCE
                pairs = np.argwhere(near) + np.array([row, column])
                if against is None:
                    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
                if len(pairs):
                    yield pairs, is_mirrored


def _window(before: float, after: float) -> NDArray[np.float32]:
    """Return the matrix (24, 24) that stretches what is left of an axis after a crop."""
    edges = np.linspace(before, 1 - after, SIDE + 1) * SIDE
    pixels = np.arange(SIDE)
    low = np.maximum(edges[:-1, None], pixels)
    high = np.minimum(edges[1:, None], pixels + 1)
    weights = np.clip(high - low, 0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


_WINDOWS = [_window(*crop) for crop in CROPS]


def _correlations(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the best correlation (n,) of images (n, 24, 24, 3) over all crops of either."""
    one, two = (images.astype(np.float32) for images in (first, second))
    best = _correlation(one, two)
    near = np.flatnonzero((best >= ROUGH_CORRELATION) & (best < MIN_CORRELATION))
    if not len(near):
        return best
    one, two = one[near], two[near]
    for rows, columns in product(_WINDOWS, repeat=2):
        for cropped, whole in ((one, two), (two, one)):
            shown = np.einsum("yk,nklc,xl->nyxc", rows, cropped, columns, optimize=True)
            best[near] = np.maximum(best[near], _correlation(shown, whole))
    return best


def _correlation(one: NDArray[np.float32], two: NDArray[np.float32]) -> NDArray[np.float32]:
    one, two = (images.reshape(len(images), SIDE * SIDE * 3) for images in (one, two))
    one, two = (rows - rows.mean(axis=1, keepdims=True) for rows in (one, two))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    return np.asarray(np.einsum("nd,nd->n", one, two) / np.maximum(lengths, 1e-6))
