"""Token losses: masked and prefix language modelling."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.distributed.collectives import mean_over_ranks
from triptych.objectives import IGNORE_INDEX


def token_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the cross-entropies over this process's labelled tokens.

    Args:
        logits: (..., V).
        labels: (...) int64; IGNORE_INDEX is not read.

    Returns:
        Scalar float32; 0 with a gradient of 0 when no token is labelled.
    """
    return F.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy over the labelled tokens of all processes.

    Args:
        logits: (..., V).
        labels: (...) int64; IGNORE_INDEX is not read.

    Returns:
        Scalar float32; 0 with a gradient of 0 when no token is labelled.
    """
    return mean_over_ranks(token_sum(logits, labels), (labels != IGNORE_INDEX).sum())


def distillation_sum(logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of cross-entropies to a teacher's distribution over the labelled tokens.

    The softmax runs over the vocabulary. (The released code's runs over the sequence.)

    Args:
        logits: (..., V).
        teacher_logits: (..., V), without gradient.
        labels: (...) int64; positions with IGNORE_INDEX are not read.

    Returns:
        Scalar float32 of this process's tokens; 0 when none is labelled.
    """
    targets = torch.softmax(teacher_logits.float(), dim=-1)
    per_token = -(torch.log_softmax(logits.float(), dim=-1) * targets).sum(dim=-1)
    return (per_token * (labels != IGNORE_INDEX)).sum()


def distillation_loss(logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of what `distillation_sum` sums, over the labelled tokens of all processes.

    Returns:
        Scalar float32; 0 when no token is labelled.
    """
    total = distillation_sum(logits, teacher_logits, labels)
    return mean_over_ranks(total, (labels != IGNORE_INDEX).sum())


def shift_targets(token_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Split target sequences into what the decoder reads and what it must predict next.

    Args:
        token_ids: (B, L) int64, `[CLS] word ... [SEP]`, padded on the right.
        mask: (B, L) bool, True = real token.

    Returns:
        Inputs (B, L - 1) and labels (B, L - 1) with IGNORE_INDEX at padding.
    """
    return token_ids[:, :-1], token_ids[:, 1:].masked_fill(~mask[:, 1:], IGNORE_INDEX)
