"""Masked image modelling: predict the codes of masked patches (BEiT, equation 3; FLAVA, 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.objectives import IGNORE_INDEX
from triptych.objectives.mlm import token_loss


def code_labels(codes: Tensor, hidden_patches: Tensor) -> Tensor:
    """Return the code of each masked patch and IGNORE_INDEX elsewhere.

    Args:
        codes: (B, P) or (B, grid, grid) int64.
        hidden_patches: (B, P) or (B, grid, grid) bool, True = hidden.

    Returns:
        (B, P) int64; a new tensor.
    """
    return codes.flatten(1).masked_fill(~hidden_patches.flatten(1), IGNORE_INDEX)


def mim_loss(logits: Tensor, codes: Tensor) -> Tensor:
    """Return the mean cross-entropy of codes over the masked patches of all processes.

    Args:
        logits: (..., V) scores of the codebook; (M, V) of the M masked patches alone is cheapest.
        codes: (...) int64, IGNORE_INDEX where the patch is seen.

    Returns:
        Scalar float32; 0 with a gradient of 0 when no patch is hidden.
    """
    return token_loss(logits, codes)


@torch.no_grad()
def mim_accuracy(logits: Tensor, codes: Tensor) -> Tensor:
    """Return the fraction of masked patches whose code has the highest score: scalar float32.

    It is of this process alone, and 0 when no patch is hidden.
    """
    hidden = codes != IGNORE_INDEX
    right = (logits.argmax(dim=-1) == codes) & hidden
    return right.sum() / hidden.sum().clamp(min=1)
