"""Image-text matching with hard negatives (ITM)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.distributed.collectives import mean_over_ranks, shared_uniform
from triptych.objectives.contrastive import positive_pairs, similarity
from triptych.objectives.tiled import TILE


@torch.no_grad()
def sample_hard_negatives(
    queries: Tensor,
    candidates: Tensor,
    temperature: Tensor,
    query_keys: Tensor,
    candidate_keys: Tensor,
    *,
    tile: int = TILE,
) -> tuple[Tensor, Tensor]:
    """Draw one negative a row, with probability softmax(q · cᵀ / τ) over what is no positive.

    Row i of the joined batch takes the i-th number of a generator that all processes share, and
    the first candidate at which the cumulated probability exceeds it. So the draws do not depend
    on how the batch is spread over processes. Candidates come in tiles, twice: memory is that of
    (B, tile) numbers. Large logits cannot make the draw fail, since the softmax runs over the
    negatives alone.

    Args:
        queries: (B, E) of this process's rows; B is the same on each process.
        candidates: (G, E).
        temperature: Scalar τ.
        query_keys: (B, F) int64; see `positive_pairs`.
        candidate_keys: (G, F) int64.
        tile: Candidates whose logits exist at a time.

    Returns:
        (B,) int64 position of the negative, and (B,) bool, False for a row that has none (its
        position means nothing).
    """
    starts = range(0, len(candidates), tile)

    def logits(start: int) -> Tensor:
        some = slice(start, start + tile)
        found = similarity(queries, candidates[some], temperature)
        return found.masked_fill_(positive_pairs(query_keys, candidate_keys[some]), -torch.inf)

    total = torch.full((len(queries),), -torch.inf, device=queries.device)
    for start in starts:
        total = torch.logaddexp(total, torch.logsumexp(logits(start), dim=1))
    has_negative = total > -torch.inf
    total = total.masked_fill(~has_negative, 0.0)
    number = shared_uniform(len(queries), device=queries.device)
    passed = torch.zeros_like(total)  # cumulated probability before the tile
    chosen = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    for start in starts:
        shares = torch.exp(logits(start) - total[:, None])
        cumulated = passed[:, None] + shares.cumsum(dim=1)
        here = (passed <= number) & (shares > 0).any(dim=1)
        last = shares.shape[1] - 1 - (shares > 0).flip(1).int().argmax(dim=1)
        first = (cumulated > number[:, None]).int().argmax(dim=1)
        # where rounding keeps the whole sum below the number, the last candidate is taken
        found = torch.where(cumulated[:, -1] > number, first, last)
        chosen = torch.where(here, start + found, chosen)
        passed = cumulated[:, -1]
    return chosen, has_negative


def itm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy over the pairs of all processes.

    Args:
        logits: (M, 2), class 1 = match.
        labels: (M,) int64, 1 = match, 0 = no match, IGNORE_INDEX = not read.

    Returns:
        Scalar float32, ln 2 for equal logits; 0 when nothing is read.
    """
    total = F.cross_entropy(logits.float(), labels, reduction="sum")
    return mean_over_ranks(total, (labels >= 0).sum())
