"""Batches without needless padding: shorter texts, and the positions that a loss reads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.core.host import alike, on_host
from triptych.distributed.collectives import max_over_ranks
from triptych.objectives import IGNORE_INDEX

TEXT_KEYS = frozenset({"token_ids", "mlm_token_ids", "mlm_labels", "text_mask"})
"""What is as wide as the batch's longest text."""


def cut_padding(batch: Mapping[str, Tensor], *, together: bool = False) -> Mapping[str, Tensor]:
    """Return a batch whose texts end with the longest of them; padding costs time.

    Args:
        batch: `text_mask` (B, L) bool, and others of `TEXT_KEYS`.
        together: Whether to end with the longest text of all processes, so that all have the same
            width. All must then call this at the same time.
    """
    mask = batch.get("text_mask")
    if mask is None:
        return batch
    length = (on_host(mask).any(dim=0) * torch.arange(1, mask.shape[1] + 1)).amax()
    if together:
        length = max_over_ranks(length.to(mask.device))
    width = max(1, int(length))
    return {
        name: _of_width(tensor, width, IGNORE_INDEX if name == "mlm_labels" else 0)
        if name in TEXT_KEYS
        else tensor
        for name, tensor in batch.items()
    }


def _of_width(tensor: Tensor, width: int, value: int) -> Tensor:
    """Cut (B, L) to a width, or pad it on the right."""
    missing = width - tensor.shape[1]
    if missing > 0:
        return alike(lambda x: F.pad(x, (0, missing), value=value), tensor)
    return alike(lambda x: x[:, :width], tensor)


def is_read(labels: Tensor) -> Tensor:
    """Return where labels are to be predicted; known on the host where they are."""
    return alike(lambda x: x != IGNORE_INDEX, labels)


def true_positions(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each row is True, padded with other positions to the row that has most.

    Args:
        mask: (B, S) bool.

    Returns:
        (B, R) int64 positions in rising order, and (B, R) bool, False for padding. R is at least 1.
    """
    most = max(1, int(on_host(mask).sum(dim=1).max()))

    def order(mask: Tensor) -> Tensor:
        return torch.argsort(~mask, dim=1, stable=True)[:, :most]

    def is_true(mask: Tensor) -> Tensor:
        return torch.arange(most, device=mask.device) < mask.sum(dim=1)[:, None]

    return alike(order, mask), alike(is_true, mask)
