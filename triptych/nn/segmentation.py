"""From patch states to a score of each class at each place: a linear head, and a pyramid.

Both read the last states of a Vision Transformer as a map (B, D, G, G), whatever model gave them.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POOL_SIZES = (1, 2, 3, 6)
"""Sides of what UPerNet pools the coarsest map to (Zhao et al. 2017)."""

NORM_GROUPS = 8


class LinearSegmentation(nn.Module):
    """LayerNorm and one linear layer on each patch (Segmenter's linear decoder).

    Args:
        embed_dim: Width D of the states.
        num_classes: Classes C.
    """

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.classify = nn.Linear(embed_dim, num_classes)
        nn.init.normal_(self.classify.weight, std=0.02)
        nn.init.zeros_(self.classify.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """Return scores (B, C, G, G) of patch states (B, G², D)."""
        return as_map(self.classify(self.norm(patches)))


class PyramidSegmentation(nn.Module):
    """UPerNet (Xiao et al. 2018) on a pyramid of one map at four scales (ViTDet, Li et al. 2022).

    Maps of 4, 2, 1 and ½ times the patch grid are made from the last states; UPerNet pools the
    coarsest, adds coarse maps to finer ones, and classifies all of them joined at the finest.
    Normalisation is by groups of channels, which does not depend on the batch.

    Args:
        embed_dim: Width D of the states.
        num_classes: Classes C.
        channels: Width of the maps, a multiple of 8 (BEiT: D).
        dropout: Share of channels that training drops before the last layer (mmsegmentation: 0.1).
    """

    def __init__(
        self, embed_dim: int, num_classes: int, *, channels: int, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.scales = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(embed_dim, channels, 2, 2),
                    nn.GroupNorm(NORM_GROUPS, channels),
                    nn.GELU(),
                    nn.ConvTranspose2d(channels, channels, 2, 2),
                ),
                nn.ConvTranspose2d(embed_dim, channels, 2, 2),
                nn.Conv2d(embed_dim, channels, 1),
                nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(embed_dim, channels, 1)),
            ]
        )
        self.pooled = nn.ModuleList([_conv(channels, channels, 1) for _ in POOL_SIZES])
        self.coarsest = _conv((1 + len(POOL_SIZES)) * channels, channels, 3)
        self.lateral = nn.ModuleList([_conv(channels, channels, 1) for _ in range(3)])
        self.smooth = nn.ModuleList([_conv(channels, channels, 3) for _ in range(3)])
        self.join = _conv(4 * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, patches: Tensor) -> Tensor:
        """Return scores (B, C, 4·G, 4·G) of patch states (B, G², D)."""
        grid = as_map(self.norm(patches))
        *finer, coarsest = [scale(grid) for scale in self.scales]
        pools = [
            _resized(conv(F.adaptive_avg_pool2d(coarsest, size)), coarsest)
            for conv, size in zip(self.pooled, POOL_SIZES, strict=True)
        ]
        top = cast(Tensor, self.coarsest(torch.cat([coarsest, *pools], dim=1)))
        maps = [lateral(x) for lateral, x in zip(self.lateral, finer, strict=True)] + [top]
        for level in range(len(maps) - 1, 0, -1):
            maps[level - 1] = maps[level - 1] + _resized(maps[level], maps[level - 1])
        maps[:-1] = [smooth(x) for smooth, x in zip(self.smooth, maps[:-1], strict=True)]
        joined = self.join(torch.cat([_resized(x, maps[0]) for x in maps], dim=1))
        return cast(Tensor, self.classify(self.dropout(joined)))


def as_map(patches: Tensor) -> Tensor:
    """Return patches (B, G², D), row by row, as a map (B, D, G, G)."""
    side = math.isqrt(patches.shape[1])
    assert side * side == patches.shape[1], "the patches of a square image are a square"
    return patches.transpose(1, 2).reshape(len(patches), -1, side, side)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _conv(in_channels: int, channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False),
        nn.GroupNorm(NORM_GROUPS, channels),
        nn.ReLU(),
    )
