"""The one transformer block that every encoder, fusion network and decoder is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar, TypeVarTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.core.config import check
from triptych.nn.attention import CrossAttention, Memory, SelfAttention
from triptych.nn.dropout import Dropout
from triptych.nn.kv_cache import LayerCache
from triptych.nn.lora import LoRALinear
from triptych.nn.packing import TokenGrid
from triptych.nn.recompute import Recompute, recomputing, run_recomputed

Inputs = TypeVarTuple("Inputs")
R = TypeVar("R")


Activation = Literal["gelu", "quick_gelu"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockConfig:
    """One transformer block.

    Attributes:
        embed_dim: Width D of the states.
        num_heads: Attention heads H; must divide `embed_dim`.
        mlp_ratio: Hidden width of the FFN over `embed_dim` (4 in CLIP and BERT).
        activation: "gelu" (exact, BERT) or "quick_gelu" (u·σ(1.702u), CLIP).
        pre_norm: Whether LayerNorm precedes a sublayer (ViT) or follows the sum (BERT).
        norm_eps: Added to the variance in LayerNorm (1e-5 in CLIP, 1e-12 in BERT).
        dropout: Share of a sublayer's output that is dropped.
        attention_dropout: Share of attention weights that are dropped.
        key_bias: Whether the key projection has a bias (BEiT and VLMo: no).
    """

    embed_dim: int
    num_heads: int
    mlp_ratio: float = 4.0
    activation: Activation = "gelu"
    pre_norm: bool = False
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    key_bias: bool = True

    def __post_init__(self) -> None:
        """Reject sizes that cannot be built."""
        check(self.embed_dim > 0, "embed_dim", self.embed_dim, "be at least 1")
        check(
            self.num_heads > 0 and self.embed_dim % self.num_heads == 0,
            "num_heads",
            self.num_heads,
            f"divide embed_dim {self.embed_dim}",
        )
        check(0 <= self.dropout < 1, "dropout", self.dropout, "be in [0, 1)")
        check(
            0 <= self.attention_dropout < 1,
            "attention_dropout",
            self.attention_dropout,
            "be in [0, 1)",
        )


QUICK_GELU_SCALE = 1.702
"""QuickGELU(u) = u·σ(1.702u), CLIP's approximation of GELU."""


class FeedForward(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        hidden = round(config.embed_dim * config.mlp_ratio)
        self.activation: Activation = config.activation
        self.up = nn.Linear(config.embed_dim, hidden)
        self.down = nn.Linear(hidden, config.embed_dim)
        self.recompute_cheap = False

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, S, D) to (B, S, D), token by token.

        QuickGELU's scale moves out of the hidden states, W₂·QuickGELU(W₁x) = (W₂/s)·SiLU(s·W₁x),
        which saves two passes over them: into the weights, or where there are fewer of them, into
        the states on both sides. In an exported graph, which holds for any number of states,
        it is the weights.
        """
        if self.activation == "gelu":
            if self.recompute_cheap:
                return recomputing(F.gelu, self.up(x), self.down)
            return self.down(F.gelu(self.up(x)))  # type: ignore[no-any-return]
        scale = QUICK_GELU_SCALE
        if isinstance(self.up, LoRALinear) or isinstance(self.down, LoRALinear):
            return self.down(F.silu(self.up(x) * scale) / scale)  # type: ignore[no-any-return]
        if not torch.compiler.is_exporting() and x.numel() < self.up.weight.numel():
            hidden = F.silu(F.linear(x * scale, self.up.weight, self.up.bias * scale))
            return F.linear(hidden, self.down.weight, self.down.bias * scale) / scale
        hidden = F.silu(F.linear(x, self.up.weight * scale, self.up.bias * scale))
        return F.linear(hidden, self.down.weight / scale, self.down.bias)


def gather_tokens(x: Tensor, positions: Tensor) -> Tensor:
    """Return the tokens of (B, S, D) at `positions` (B, R) int64: (B, R, D)."""
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))


class Block(nn.Module):
    """Self-attention, optional cross-attention, feed-forward; each with a residual and a norm.

    Pre-norm: x + f(LN(x)). Post-norm: LN(x + f(x)).

    Of the activations, the backward pass computes again what `recompute` says; where
    `recompute_cheap` and not `recompute`, the outputs of GELU and of pre-norms, a third of the
    whole at next to no time.

    Args:
        config: Sizes and order of the norms.
        memory_dim: Width of the memory to attend to; None leaves cross-attention out.
    """

    shard_entries: ClassVar[tuple[str, ...]] = ("read", "joint", "step", "lend")
    """Methods beside `forward` by which a block is entered. A module that has this attribute can
    be a unit of sharded training: its parameters are used inside these methods alone, so that they
    need be whole only then."""

    def __init__(self, config: BlockConfig, memory_dim: int | None = None) -> None:
        super().__init__()
        width = config.embed_dim
        self.pre_norm = config.pre_norm
        self.attention = SelfAttention(
            width, config.num_heads, config.attention_dropout, key_bias=config.key_bias
        )
        self.attention_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.cross_attention: CrossAttention | None = None
        if memory_dim is not None:
            self.cross_attention = CrossAttention(
                width, config.num_heads, memory_dim, config.attention_dropout
            )
            self.cross_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = FeedForward(config)
        self.mlp_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)
        self._recompute: Recompute = "none"
        self._recompute_cheap = False

    @property
    def recompute(self) -> Recompute:
        """What of the block the backward pass computes again."""
        return self._recompute

    @recompute.setter
    def recompute(self, value: Recompute) -> None:
        self._recompute = value
        self.mlp.recompute_cheap = self._mlp_recomputes()

    @property
    def recompute_cheap(self) -> bool:
        """Whether the backward pass computes cheap intermediate results again."""
        return self._recompute_cheap

    @recompute_cheap.setter
    def recompute_cheap(self, value: bool) -> None:
        self._recompute_cheap = value
        self.mlp.recompute_cheap = self._mlp_recomputes()

    def _mlp_recomputes(self) -> bool:
        """A block that is computed again keeps nothing, so that its parts need not."""
        return self._recompute_cheap and self._recompute == "none"

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        memory: Memory | Tensor | None = None,
        memory_bias: Tensor | None = None,
        grid: TokenGrid | None = None,
        memory_grid: TokenGrid | None = None,
        readers: TokenGrid | None = None,
        memory_index: Tensor | None = None,
    ) -> Tensor:
        """Transform sequences.

        Args:
            x: (B, S, D) float, or packed tokens (T, D) with `grid`.
            bias: Additive self-attention scores, broadcastable to (B, H, S, S).
            memory: Memory for the cross-attention; or states (M, S, D), which the block prepares.
            memory_bias: (M, 1, 1, memory) additive cross-attention scores.
            grid: Rows of packed tokens.
            memory_grid: Row of the memory that each packed token reads, of `readers` if given;
                `readers` or `grid` if absent.
            readers: Places, in a grid of the shape of `grid`, of those packed tokens that somebody
                reads; all tokens are attended, but the others are not transformed.
            memory_index: (R,) int64, the row of the memory that each row of queries reads, where
                these are not the same; what is projected is selected.

        Returns:
            Of the shape of `x`, or the packed tokens at `readers`.
        """
        memory_grid = memory_grid or readers or grid
        inputs = x, bias, memory, memory_bias, grid, memory_grid, readers, memory_index
        return run_recomputed(self._recompute, self._transform, *inputs)

    def joint(
        self,
        image: Tensor,
        text: Tensor,
        bias: Tensor,
        grid: TokenGrid,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """Transform [image; text] as one sequence.

        Args:
            image: (B, N, D) float.
            text: (T, D) packed tokens of M texts.
            bias: Additive scores, broadcastable to (M, H, N + L, N + L).
            grid: Rows of the text.
            image_index: (M,) int64, the image of each text; None means M = B, in order.

        Returns:
            (M·N + T, D): the image tokens of all rows, then the packed text tokens.
        """
        inputs = image, text, bias, grid, image_index
        return run_recomputed(self._recompute, self._transform_joint, *inputs)

    def _transform(
        self,
        x: Tensor,
        bias: Tensor | None,
        memory: Memory | Tensor | None,
        memory_bias: Tensor | None,
        grid: TokenGrid | None,
        memory_grid: TokenGrid | None,
        readers: TokenGrid | None,
        memory_index: Tensor | None,
    ) -> Tensor:
        if grid is None:
            x = x + self.dropout(self._normed(self.attention_norm, x, self.attention, bias))
            x = x if self.pre_norm else self.attention_norm(x)
            return self._after_attention(x, memory, memory_bias, memory_grid, memory_index)
        normed = self.attention_norm(x) if self.pre_norm else x
        asking = None
        if readers is not None:
            index = grid.packed_index(readers).to(x.device)
            x, asking = x.index_select(0, index), normed.index_select(0, index)
        x = x + self.dropout(self.attention(normed, bias, asking, grid, readers))
        x = x if self.pre_norm else self.attention_norm(x)
        return self._after_attention(x, memory, memory_bias, memory_grid, memory_index)

    def _transform_joint(
        self,
        image: Tensor,
        text: Tensor,
        bias: Tensor,
        grid: TokenGrid,
        image_index: Tensor | None,
    ) -> Tensor:
        normed = [self.attention_norm(x) if self.pre_norm else x for x in (image, text)]
        attended = self.attention.joint(normed[0], normed[1], bias, grid, image_index)
        image = image if image_index is None else image.index_select(0, image_index)
        x = torch.cat([image.flatten(0, 1), text.to(image.dtype)])  # (M·N + T, D)
        x = x + self.dropout(attended)
        x = x if self.pre_norm else self.attention_norm(x)
        return self._after_attention(x, None, None)

    def read(self, x: Tensor, positions: Tensor, bias: Tensor | None = None) -> Tensor:
        """Transform only the tokens that somebody reads; all tokens are attended.

        The last block of a stack whose loss reads a few states need not compute the others.

        Args:
            x: (B, S, D) float.
            positions: (B, R) int64, in the sequence.
            bias: Additive self-attention scores, broadcastable to (B, H, R, S).

        Returns:
            (B, R, D): what `forward` gives at those positions.
        """
        return run_recomputed(self._recompute, self._read, x, positions, bias)

    def _read(self, x: Tensor, positions: Tensor, bias: Tensor | None) -> Tensor:
        def attend(normed: Tensor) -> Tensor:
            attended: Tensor = self.attention(normed, bias, gather_tokens(normed, positions))
            return attended

        x = gather_tokens(x, positions) + self.dropout(self._normed(self.attention_norm, x, attend))
        x = x if self.pre_norm else self.attention_norm(x)
        return self._after_attention(x, None, None)

    def _normed(
        self, norm: nn.Module, x: Tensor, sublayer: Callable[..., Tensor], *inputs: Tensor | None
    ) -> Tensor:
        """Run a sublayer behind its norm, or alone where the norm follows it."""
        if not self.pre_norm:
            return sublayer(x, *inputs)
        if self._mlp_recomputes():
            return recomputing(norm, x, lambda normed: sublayer(normed, *inputs))
        return sublayer(norm(x), *inputs)

    def step(
        self, x: Tensor, cache: LayerCache, memory: Memory, memory_bias: Tensor | None = None
    ) -> Tensor:
        """Transform the newest token of each beam, (B, R, D); earlier tokens are in the cache."""
        normed = self.attention_norm(x) if self.pre_norm else x
        x = x + self.attention.step(normed, cache)
        x = x if self.pre_norm else self.attention_norm(x)
        return self._after_attention(x, memory, memory_bias)

    def lend(self, use: Callable[[Block, *Inputs], R], *inputs: *Inputs) -> R:
        """Return use(self, *inputs), for a network that needs parts of a block in its own order.

        As with every entry, the result may be no view of another tensor.
        """
        return run_recomputed(self._recompute, use, self, *inputs)

    def _after_attention(
        self,
        x: Tensor,
        memory: Memory | Tensor | None,
        memory_bias: Tensor | None,
        memory_grid: TokenGrid | None = None,
        memory_index: Tensor | None = None,
    ) -> Tensor:
        if self.cross_attention is not None and memory is not None:
            if isinstance(memory, Tensor):
                num_queries = x.shape[1] if memory_grid is None else memory_grid.width
                memory = self.cross_attention.prepare(memory, num_queries)
            if memory_index is not None:
                memory = memory.select(memory_index)
            normed = self.cross_norm(x) if self.pre_norm else x
            x = x + self.dropout(self.cross_attention(normed, memory, memory_bias, memory_grid))
            x = x if self.pre_norm else self.cross_norm(x)
        x = x + self.dropout(self._normed(self.mlp_norm, x, self.mlp))
        return x if self.pre_norm else self.mlp_norm(x)
