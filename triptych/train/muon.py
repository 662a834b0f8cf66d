"""Muon: momentum whose update is orthogonalised, for the matrices inside blocks; AdamW elsewhere.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon); the scale that lets AdamW's learning rates
carry over is that of Liu et al. 2025 (arXiv:2502.16982), 0.2·√max(rows, columns).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.core.machine import cpu_has_bf16
from triptych.distributed.collectives import all_gather
from triptych.distributed.env import rank, world_size

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd quintic that pulls singular values towards 1 (Jordan et al. 2024)."""


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return matrices with the same singular vectors and singular values of about 1.

    Args:
        matrices: (M, R, C) with R <= C.
        steps: Newton-Schulz iterations.

    Returns:
        (M, R, C) bfloat16; singular values end between 0.7 and 1.2. A processor that would
        emulate bf16 computes in fp32.
    """
    a, b, c = COEFFICIENTS
    emulated = matrices.device.type == "cpu" and not cpu_has_bf16()
    x = matrices.to(torch.float32 if emulated else torch.bfloat16)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(torch.bfloat16)


class Muon(torch.optim.AdamW):
    """AdamW that treats the groups marked `muon` otherwise.

    Matrices of one shape are orthogonalised in one batch; processes that train together share the
    work.

    Args:
        groups: Parameter groups; one with `"muon": True` holds matrices only.
        momentum: Decay rate of Muon's momentum, which is Nesterov's.
        options: What AdamW takes.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, **options: Any) -> None:
        super().__init__(groups, **options)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters."""
        chosen = [
            (parameter, group)
            for group in self.param_groups
            if group.get("muon")
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        gradients = [parameter.grad for parameter, _ in chosen]
        for parameter, _ in chosen:
            parameter.grad = None  # AdamW passes over it
        super().step(closure)
        for (parameter, _), gradient in zip(chosen, gradients, strict=True):
            parameter.grad = gradient
        self._muon_step(chosen)

    def _muon_step(self, chosen: list[tuple[Tensor, dict[str, Any]]]) -> None:
        batches: dict[tuple[int, int], list[tuple[Tensor, dict[str, Any], Tensor]]]
        batches = defaultdict(list)
        for parameter, group in chosen:
            wide = self._momentum_of(parameter)
            batches[tuple(wide.shape)].append((parameter, group, wide))  # type: ignore[index]
        for entries in batches.values():
            updates = _shared(torch.stack([wide for _, _, wide in entries]))
            for (parameter, group, _), update in zip(entries, updates, strict=True):
                update = update if parameter.shape == update.shape else update.mT
                scale = 0.2 * max(parameter.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * scale)

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        """Return Nesterov's update of a matrix, its rows not more than its columns."""
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        momentum.lerp_(gradient, 1 - self.momentum)
        update = torch.lerp(gradient, momentum, self.momentum)
        return update if update.shape[0] <= update.shape[1] else update.mT


def _shared(matrices: Tensor) -> Tensor:
    """Orthogonalise (M, R, C), each process its part."""
    if world_size() == 1:
        return orthogonalise(matrices)
    share = -(-len(matrices) // world_size())
    own = matrices[rank() * share : (rank() + 1) * share]
    done = orthogonalise(own) if len(own) else own.to(torch.bfloat16)
    return all_gather(F.pad(done, (0, 0, 0, 0, 0, share - len(own))))[: len(matrices)]
