"""Learned position tables and how they change with the image size."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.core.errors import ConfigError


def resize_position_table(
    table: Tensor, num_patches: int, *, mode: Literal["bilinear", "bicubic"] = "bilinear"
) -> Tensor:
    """Resize the grid part of a position table; the [CLS] row stays.

    mPLUG's loader does it bilinearly, FLAVA bicubically; corners are not aligned and nothing is
    antialiased.

    Args:
        table: (1 + P, D), the [CLS] row first; P must be a square.
        num_patches: Patches of the new grid; must be a square.
        mode: How to interpolate.

    Returns:
        (1 + num_patches, D).

    Raises:
        ConfigError: One of the grids is not a square.
    """
    old, new = math.isqrt(table.shape[0] - 1), math.isqrt(num_patches)
    if old * old != table.shape[0] - 1 or new * new != num_patches:
        raise ConfigError(
            f"cannot resize a position table of {table.shape[0] - 1} patches to {num_patches}: "
            "both must be square grids"
        )
    if old == new:
        return table
    grid = table[1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)  # (1, D, old, old)
    grid = F.interpolate(grid.float(), (new, new), mode=mode, align_corners=False)
    rows = grid.permute(0, 2, 3, 1).reshape(num_patches, -1).to(table.dtype)  # (P', D)
    return torch.cat([table[:1], rows])
