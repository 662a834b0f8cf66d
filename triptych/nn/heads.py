"""Small networks on top of an encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class VocabularyHead(nn.Module):
    """BERT's masked-language-model head: dense, GELU, LayerNorm, then a score for every word.

    The output matrix is either given to `forward` (tied to a word table) or owned by the head.

    Args:
        embed_dim: Width D of the states.
        vocab_size: Number of words V.
        norm_eps: Added to the variance in LayerNorm.
        tied: Whether `forward` is given the word table.
    """

    def __init__(self, embed_dim: int, vocab_size: int, norm_eps: float, *, tied: bool) -> None:
        super().__init__()
        self.dense = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.weight = None if tied else nn.Parameter(torch.empty(vocab_size, embed_dim))
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x: Tensor, word_table: Tensor) -> Tensor:
        """Score every word.

        Args:
            x: (..., D) float.
            word_table: (V, D); ignored when the head owns its matrix.

        Returns:
            (..., V) logits.
        """
        weight = word_table if self.weight is None else self.weight
        return F.linear(self.norm(F.gelu(self.dense(x))), weight, self.bias)
