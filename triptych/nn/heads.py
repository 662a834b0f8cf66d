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

    def forward(self, x: Tensor, word_table: Tensor | None = None) -> Tensor:
        """Score every word.

        Args:
            x: (..., D) float.
            word_table: (V, D); ignored, and not needed, when the head owns its matrix.

        Returns:
            (..., V) logits.
        """
        weight = word_table if self.weight is None else self.weight
        assert weight is not None, "a tied head needs the word table"
        return F.linear(self.hidden(x), weight, self.bias)

    def hidden(self, x: Tensor) -> Tensor:
        """Return what the output matrix reads, of the shape of `x`."""
        return self.norm(F.gelu(self.dense(x)))  # type: ignore[no-any-return]


ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class ClassificationHead(nn.Sequential):
    """A score for each class: [dense, [LayerNorm], activation, dropout,] dense.

    Args:
        embed_dim: Width D of the state that is classified.
        num_classes: Number of classes C.
        hidden_dim: Width of the hidden layer; 0 is a linear head.
        norm: Whether a LayerNorm stands before the activation.
        activation: "relu", "gelu" or "tanh".
        dropout: Share of hidden units that training drops.
        init_std: Standard deviation of the random weights; biases are 0.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        *,
        hidden_dim: int = 0,
        norm: bool = False,
        activation: str = "gelu",
        dropout: float = 0.0,
        init_std: float = 0.02,
    ) -> None:
        layers: list[nn.Module] = []
        if hidden_dim:
            layers.append(nn.Linear(embed_dim, hidden_dim))
            layers += [nn.LayerNorm(hidden_dim)] if norm else []
            layers += [ACTIVATIONS[activation](), nn.Dropout(dropout)]
        layers.append(nn.Linear(hidden_dim or embed_dim, num_classes))
        super().__init__(*layers)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=init_std)
                nn.init.zeros_(layer.bias)
