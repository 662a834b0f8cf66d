"""Exponential moving averages of modules."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MomentumEncoder(nn.Module):
    """A slow copy of a module: θ_m ← m·θ_m + (1 - m)·θ (He et al. 2020, eq. 2).

    The copy has no gradient and stays in eval mode. Every tensor of the module is tracked, the
    fusion network included (the released code excludes it).
    """

    def __init__(self, module: nn.Module, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> MomentumEncoder:
        """Ignore the mode: a teacher never drops anything."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def update(self, source: nn.Module) -> None:
        """Move the copy towards `source`, which must be built alike."""
        self.follow(list(source.parameters()))
        for mine, theirs in zip(self.module.buffers(), source.buffers(), strict=True):
            mine.copy_(theirs)

    @torch.no_grad()
    def follow(self, parameters: Sequence[Tensor]) -> None:
        """Move the copy towards these parameters, in its own order; buffers stay."""
        torch._foreach_lerp_(
            list(self.module.parameters()), [p.detach() for p in parameters], 1 - self.momentum
        )
