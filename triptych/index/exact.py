"""Exact search: inner products of queries with all vectors, tile by tile."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.index.store import Vectors

TILE = 1024
"""Vectors that are converted and multiplied together: at a width of 256, 1 MiB of float32, which
stays in a processor's cache."""

BLOCK = 65_536
"""Vectors whose scores are kept together before the best are taken."""


def search_exact(
    vectors: Sequence[Vectors], queries: Tensor, top: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the vectors with the largest inner products.

    Products are taken in float32 of the stored float16 values. Of equal scores, the earlier
    vectors come first.

    Args:
        vectors: Parts (n, E) float16 of N vectors, one after the other.
        queries: (Q, E) float32.
        top: How many to return; N at most.

    Returns:
        Scores (Q, K) in falling order, and the numbers of the vectors (Q, K).
    """
    total = sum(len(part) for part in vectors)
    top = min(top, total)
    best = torch.empty(len(queries), 0)
    numbers = torch.empty(len(queries), 0, dtype=torch.int64)
    room = torch.empty(TILE, queries.shape[1])
    scores = torch.empty(BLOCK, len(queries))
    columns = queries.t().contiguous()
    start = 0
    for part in map(_mapped, vectors):
        for first in range(0, len(part), BLOCK):
            block = part[first : first + BLOCK]
            for row in range(0, len(block), TILE):
                tile = block[row : row + TILE]
                rows = room[: len(tile)].copy_(tile)
                torch.mm(rows, columns, out=scores[row : row + len(tile)])
            values, found = scores[: len(block)].t().topk(min(top, len(block)), dim=1)
            best = torch.cat([best, values], dim=1)
            numbers = torch.cat([numbers, found + (start + first)], dim=1)
            best, numbers = _first(best, numbers, top)
        start += len(part)
    return best.numpy(), numbers.numpy()


def _mapped(part: Vectors) -> Tensor:
    """Return a tensor on a mapped file, without torch's warning that it might be written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(part)


def _first(scores: Tensor, numbers: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return the best columns of each row, of equal ones those with the smaller numbers."""
    by_number = numbers.argsort(dim=1)
    order = scores.gather(1, by_number).argsort(dim=1, descending=True, stable=True)[:, :top]
    order = by_number.gather(1, order)
    return scores.gather(1, order), numbers.gather(1, order)
