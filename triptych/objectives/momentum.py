"""Exponential moving averages of modules."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_SAMPLED, _ENTRIES = 16, 1024
"""Parameters that `MomentumEncoder.vitals` looks at, and entries of each."""


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
    def vitals(self, source: nn.Module) -> dict[str, float]:
        """Return the norm of a sample of the copy, and how far from `source` it is.

        Returns:
            `teacher/norm`, which changes whenever the copy moves; `teacher/distance`, relative to
            the norm of the source.
        """
        mine, theirs = (_sample(module) for module in (self.module, source))
        distance = (mine - theirs).norm() / theirs.norm().clamp(min=1e-12)
        return {"teacher/norm": float(mine.norm()), "teacher/distance": float(distance)}

    @torch.no_grad()
    def follow(self, parameters: Sequence[Tensor]) -> None:
        """Move the copy towards these parameters, in its own order; buffers stay."""
        torch._foreach_lerp_(
            list(self.module.parameters()), [p.detach() for p in parameters], 1 - self.momentum
        )


def _sample(module: nn.Module) -> Tensor:
    """Return the first entries of some parameters of a module, in double precision."""
    parameters: list[Tensor] = list(module.parameters())
    some = parameters[:: max(1, len(parameters) // _SAMPLED)]
    parts = [p.to_local() if isinstance(p, DTensor) else p for p in some]
    return torch.cat([part.flatten()[:_ENTRIES].double() for part in parts])
