"""Exact search: inner products of queries with all vectors.

Many queries are compared tile by tile in float32. A few are first compared in float16, which reads
half the bytes; what could be among the best after rounding is then compared in float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

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

GROUP = 32
"""Scores of which only the largest is compared with those of other groups."""

COLUMNS = 16
"""Queries are padded to a multiple of this: matrix products with fewer columns take longer."""

FEW = 4
"""Up to so many queries, float16 products are faster than tiles."""

ROUNDING = 2.0**-10 * 1.1
"""At most so far is a float16 product of vectors of length 1 from the exact one: the query and the
product are each rounded to 11 bits, and sums are taken in float32."""


def search_exact(
    vectors: Sequence[Vectors], queries: Tensor, top: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the vectors with the largest inner products.

    Products are taken in float32 of the stored float16 values. Results with equal scores are
    ordered by their numbers.

    Args:
        vectors: Parts (n, E) float16 of N vectors of length 1, one after the other.
        queries: (Q, E) float32 of length 1.
        top: How many to return; N at most.

    Returns:
        Scores (Q, K) in falling order, and the numbers of the vectors (Q, K).
    """
    total = sum(len(part) for part in vectors)
    top = min(top, total)
    parts = [_mapped(part) for part in vectors]
    if len(queries) <= FEW:
        found = [_search_one(parts, query, top) for query in queries]
        scores, numbers = (torch.stack(rows) for rows in zip(*found, strict=True))
        return scores.numpy(), numbers.numpy()
    best = torch.empty(len(queries), 0)
    numbers = torch.empty(len(queries), 0, dtype=torch.int64)
    for start, scores in _score_blocks(parts, queries):
        values, found_here = _largest(scores, min(top, len(scores)))
        best = torch.cat([best, values], dim=1)
        numbers = torch.cat([numbers, found_here + start], dim=1)
        best, numbers = _first(best, numbers, top)
    return best.numpy(), numbers.numpy()


def _score_blocks(parts: Sequence[Tensor], queries: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of a first vector, and the scores (n, Q) from there on.

    The scores are overwritten by the next block.
    """
    asked = len(queries)
    columns = torch.zeros(queries.shape[1], -(-asked // COLUMNS) * COLUMNS)
    columns[:, :asked] = queries.t()
    room = torch.empty(TILE, queries.shape[1])
    scores = torch.empty(BLOCK, columns.shape[1])
    start = 0
    for part in parts:
        for first in range(0, len(part), BLOCK):
            block = part[first : first + BLOCK]
            for row in range(0, len(block), TILE):
                tile = block[row : row + TILE]
                torch.mm(room[: len(tile)].copy_(tile), columns, out=scores[row : row + len(tile)])
            yield start + first, scores[: len(block), :asked]
        start += len(part)


def _largest(scores: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return the largest scores (Q, K) of each column of (n, Q), and their rows.

    The K largest lie in the K groups with the largest maxima, so only these are sorted.
    """
    groups = len(scores) // GROUP
    if groups <= top:
        values, rows = scores.t().topk(top, dim=1)
        return values, rows
    grouped = scores[: groups * GROUP].view(groups, GROUP, -1)
    chosen = grouped.amax(dim=1).topk(top, dim=0).indices.t()
    rows = (chosen[:, :, None] * GROUP + torch.arange(GROUP)).flatten(1)
    rest = torch.arange(groups * GROUP, len(scores)).expand(len(rows), -1)
    rows = torch.cat([rows, rest], dim=1)
    values, places = scores.t().gather(1, rows).topk(top, dim=1)
    return values, rows.gather(1, places)


def _search_one(parts: Sequence[Tensor], query: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return the best scores (K,) and numbers (K,) for a query (E,)."""
    half = query.half()
    rough = torch.cat([torch.mv(part, half).float() for part in parts])
    kth = _largest(rough[:, None], top)[0][0, -1]
    limit = kth - 2 * ROUNDING * query.norm().clamp(min=1.0)
    candidates = (rough >= limit).nonzero()[:, 0]
    rows, start = [], 0
    for part in parts:
        inside = candidates[(candidates >= start) & (candidates < start + len(part))]
        rows.append(part[inside - start])
        start += len(part)
    scores = torch.mv(torch.cat(rows).float(), query)
    best, numbers = _first(scores[None], candidates[None], top)
    return best[0], numbers[0]


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
