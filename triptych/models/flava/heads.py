"""Heads that only FLAVA has."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MatchingHead(nn.Module):
    """ITM: a tanh pooler on the fused [CLS] state, then a score for each class (released code)."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(embed_dim, embed_dim)
        self.out = nn.Linear(embed_dim, 2)

    def forward(self, cls: Tensor) -> Tensor:
        """Map (M, D) to (M, 2) logits, class 1 = match."""
        return self.out(torch.tanh(self.dense(cls)))  # type: ignore[no-any-return]
