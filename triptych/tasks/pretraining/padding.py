"""Batches without needless padding: shorter texts, and the positions that a loss reads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def cut_padding(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a batch whose texts end with the longest of them; padding costs time."""
    mask = batch.get("text_mask")
    if mask is None or bool(mask[:, -1].any()):
        return batch
    longest = max(1, int(mask.any(dim=0).nonzero().max()) + 1) if bool(mask.any()) else 1
    names = {"token_ids", "mlm_token_ids", "mlm_labels", "text_mask"}
    return {name: t[:, :longest] if name in names else t for name, t in batch.items()}


def true_positions(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each row is True, padded with other positions to the row that has most.

    Args:
        mask: (B, S) bool.

    Returns:
        (B, R) int64 positions in rising order, and (B, R) bool, False for padding. R is at least 1.
    """
    counts = mask.sum(dim=1)
    most = max(1, int(counts.max()))
    order = torch.argsort(~mask, dim=1, stable=True)[:, :most]
    return order, torch.arange(most, device=mask.device) < counts[:, None]
