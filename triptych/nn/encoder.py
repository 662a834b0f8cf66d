"""BERT-style text encoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from triptych.core.config import check
from triptych.core.errors import DataError
from triptych.nn.attention import key_bias
from triptych.nn.block import Block, BlockConfig
from triptych.nn.embeddings import TextEmbedding
from triptych.nn.packing import TokenGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """Sizes that the text encoder, the fusion network and the decoder share.

    Attributes:
        vocab_size: Words V (30522 in bert-base-uncased).
        embed_dim: Width D.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the FFN over `embed_dim`.
        max_positions: Rows of the position table (512 in BERT): the longest text in tokens.
        dropout: Share dropped after embeddings and sublayers (0.1 in BERT).
        attention_dropout: Share of attention weights dropped (0.1 in BERT).
        pre_norm: Whether LayerNorm precedes each sublayer, with a last one at the end of each
            stack, instead of following it as in BERT. Released weights need False; True learns
            several times faster from scratch at small sizes.
    """

    vocab_size: int
    embed_dim: int
    num_heads: int
    mlp_ratio: float = 4.0
    max_positions: int = 512
    dropout: float = 0.1
    attention_dropout: float = 0.1
    pre_norm: bool = False

    def __post_init__(self) -> None:
        """Reject an empty vocabulary or position table."""
        check(self.vocab_size > 0, "vocab_size", self.vocab_size, "be at least 1")
        check(self.max_positions > 0, "max_positions", self.max_positions, "be at least 1")

    def block(self) -> BlockConfig:
        """Return BERT's block: exact GELU, eps 1e-12, post-norm unless `pre_norm`."""
        return BlockConfig(
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            pre_norm=self.pre_norm,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
        )

    def final_norm(self) -> nn.Module:
        """Build what ends a stack of blocks: a LayerNorm after pre-norm blocks, else nothing."""
        return nn.LayerNorm(self.embed_dim, eps=1e-12) if self.pre_norm else nn.Identity()

    def embedding(self) -> TextEmbedding:
        """Build the token embedding."""
        return TextEmbedding(
            self.vocab_size, self.embed_dim, self.max_positions, 1e-12, self.dropout
        )


def check_text_length(token_ids: Tensor, max_positions: int) -> None:
    """Raise a DataError when a text (B, L) is longer than the position table."""
    if token_ids.shape[1] > max_positions:
        raise DataError(
            f"text has {token_ids.shape[1]} tokens but the model reads {max_positions}: "
            "shorten it, or lower max_text_tokens"
        )


class TextEncoder(nn.Module):
    """The first layers of BERT (Devlin et al. 2019): embeddings and blocks."""

    def __init__(self, config: TextConfig, depth: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = config.embedding()
        self.blocks = nn.ModuleList(Block(config.block()) for _ in range(depth))
        self.final_norm = config.final_norm()

    def forward(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Encode token ids.

        Args:
            token_ids: (B, L) int64.
            text_mask: (B, L) bool, True = real token, may be attended.

        Returns:
            (B, L, D). Values at padding are meaningless.
        """
        check_text_length(token_ids, self.config.max_positions)
        grid = TokenGrid.of(text_mask, self.config.embed_dim)
        x = grid.pack(self.embedding(token_ids))  # (T, D)
        bias = key_bias(text_mask, x.dtype)
        for block in self.blocks:
            x = block(x, bias, grid=grid)
        return grid.pad(self.final_norm(x))
