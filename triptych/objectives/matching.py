"""Image-text matching with hard negatives (ITM)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.distributed.collectives import mean_over_ranks


@torch.no_grad()
def sample_hard_negatives(sim: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one negative a row, with probability softmax(sim) over what is no positive.

    One batched draw. Large logits cannot make it fail, since the softmax runs over the negatives
    alone.

    Args:
        sim: (B, G) similarities over the temperature.
        positives: (B, G) bool, True = the same image or the same caption: never drawn.

    Returns:
        (B,) int64 column of the negative, and (B,) bool, False for a row that has none (its
        column means nothing).
    """
    has_negative = ~positives.all(dim=1)
    logits = sim.float().masked_fill(positives, -torch.inf)
    logits = logits.masked_fill(~has_negative[:, None], 0.0)
    return torch.multinomial(torch.softmax(logits, dim=1), 1)[:, 0], has_negative


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
