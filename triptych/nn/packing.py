"""Texts without their padding: what each layer need not compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PACKED_FROM = 384
"""Width D from which padding is skipped. A batch of another number of tokens makes the CPU's matrix
library prepare its kernels again, which at width 128 costs more than the padding does."""


@dataclass(frozen=True, slots=True)
class TokenGrid:
    """Where packed tokens (T, D) stand in a padded grid (R, W, D).

    Linear layers, norms and residuals read a token at a time and run on the packed tokens; only
    attention needs rows. The same tokens can stand in several grids: a row a text for the
    self-attention, a row an image for the cross-attention.

    Attributes:
        num_rows: Rows R.
        width: Slots W of a row.
        slots: (T,) int64, distinct: row · W + column of each token; None when the grid is full.
        tokens: (R · W,) int64, the token in each slot, and the first one where none stands.
    """

    num_rows: int
    width: int
    slots: Tensor | None = None
    tokens: Tensor | None = None

    @classmethod
    def at(cls, num_rows: int, width: int, slots: Tensor) -> TokenGrid:
        """Return the grid with tokens at distinct slots (T,) int64."""
        tokens = slots.new_zeros(num_rows * width)
        tokens[slots] = torch.arange(len(slots), device=slots.device)
        return cls(num_rows, width, slots, tokens)

    @staticmethod
    def counts_at_once(x: Tensor) -> bool:
        """Whether the host knows at once how many entries of a tensor are so and so: on a CPU."""
        return not x.is_cuda

    @classmethod
    def of(cls, mask: Tensor, embed_dim: int) -> TokenGrid:
        """Return the grid of the True entries of a mask (R, W) bool, in row-major order.

        States narrower than `PACKED_FROM` keep their padding: the grid is full. So do those of an
        exported graph, whose shapes do not depend on what a mask holds, and those on a GPU, which
        would have to be waited for to learn how many tokens there are.
        """
        num_rows, width = mask.shape
        if embed_dim < PACKED_FROM or not cls.counts_at_once(mask) or torch.compiler.is_exporting():
            return cls(num_rows, width)
        slots = mask.flatten().nonzero()[:, 0]
        if len(slots) == num_rows * width:
            return cls(num_rows, width)
        return cls.at(num_rows, width, slots)

    def pack(self, x: Tensor) -> Tensor:
        """Take the tokens of a grid (R, W, ...): (T, ...)."""
        flat = x.flatten(0, 1)
        return flat if self.slots is None else flat.index_select(0, self.slots)

    def pad(self, x: Tensor) -> Tensor:
        """Put packed tokens (T, ...) in their slots: (R, W, ...), zeros where none stands."""
        if self.slots is not None:
            empty = x.new_zeros(self.num_rows * self.width, *x.shape[1:])
            x = empty.index_copy_(0, self.slots, x)
        return x.view(self.num_rows, self.width, *x.shape[1:])

    def spread(self, x: Tensor) -> Tensor:
        """Do what `pad` does at less cost, with any token where none stands.

        For what masks these slots, such as attention with a bias.
        """
        if x.shape[0] == 0:
            return self.pad(x)
        if self.tokens is not None:
            x = x.index_select(0, self.tokens)
        return x.view(self.num_rows, self.width, *x.shape[1:])

    def packed_index(self, some: TokenGrid) -> Tensor:
        """Return where some of these tokens, in a grid of the same shape, stand when packed."""
        if some.slots is None:
            return torch.arange(self.num_rows * self.width)
        return some.slots if self.slots is None else torch.searchsorted(self.slots, some.slots)

    def group_rows(self, index: Tensor, num_groups: int) -> TokenGrid:
        """Return the grid in which all rows of a group share one row.

        Args:
            index: (R,) int64, the group of each row.
            num_groups: Groups, that is rows of the new grid.
        """
        if self.slots is None:
            group = index.repeat_interleave(self.width)  # (T,)
        else:
            group = index.index_select(0, self.slots // self.width)
        order = torch.argsort(group, stable=True)
        counts = group.new_zeros(num_groups).scatter_add_(0, group, torch.ones_like(group))
        starts = counts.cumsum(0) - counts
        column = torch.empty_like(group)
        column[order] = torch.arange(len(group), device=group.device) - starts[group[order]]
        width = max(1, int(counts.max()))
        return TokenGrid.at(num_groups, width, group * width + column)
