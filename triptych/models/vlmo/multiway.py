"""The Multiway block: one attention for all modalities, an expert FFN for each (section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from triptych.models.vlmo.config import VLMoConfig
from triptych.nn.attention import SelfAttention
from triptych.nn.block import BlockConfig, FeedForward, gather_tokens

Route = Sequence[tuple[str, int]]
"""Runs of tokens, in order: the expert of each ("text", "image" or "fused") and its length."""


class ModalityExpert(nn.Module):
    """The FFN of one modality with its own LayerNorm: FFN(LN(x)).

    Deviation from the paper's equation, as in the released code: the norm belongs to the expert.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, S, D) to (B, S, D), token by token."""
        return self.mlp(self.norm(x))  # type: ignore[no-any-return]


class MultiwayBlock(nn.Module):
    """x' = x + γ₁ ⊙ MSA(LN(x)); y = x' + γ₂ ⊙ Multiway-FFN(x') (equations 3 and 4).

    The attention, its norm and the layer scales γ are shared by all modalities. Deviation from the
    paper's equations, as in the released code and in BEiT: γ.

    Args:
        config: Sizes.
        layer: Number of the block, from 0: blocks from `config.fused_from` on have the
            vision-language expert too, and later ones are skipped more often in training.
    """

    def __init__(self, config: VLMoConfig, layer: int) -> None:
        super().__init__()
        block, width = config.block(), config.embed_dim
        self.attention_norm = nn.LayerNorm(width, eps=block.norm_eps)
        self.attention = SelfAttention(
            width, block.num_heads, block.attention_dropout, key_bias=block.key_bias
        )
        names = ["text", "image"] + (["fused"] if layer >= config.fused_from else [])
        if config.experts == "shared":
            names = ["shared"]
        self.experts = nn.ModuleDict({name: ModalityExpert(block) for name in names})
        self.attention_scale = self.mlp_scale = None
        if config.layer_scale is not None:
            self.attention_scale = nn.Parameter(torch.full((width,), config.layer_scale))
            self.mlp_scale = nn.Parameter(torch.full((width,), config.layer_scale))
        self.drop_path = drop_path_rate(config, layer)

    def forward(
        self, x: Tensor, bias: Tensor | None, route: Route, readers: Tensor | None = None
    ) -> Tensor:
        """Transform a sequence, or those of its tokens that are read later.

        Args:
            x: (B, S, D) float.
            bias: Additive scores, broadcastable to (B, H, S, S), or (B, H, R, S) with `readers`.
            route: Which expert each run of tokens goes through; with `readers`, of these alone.
            readers: (B, R) int64, the places that are read later; None means all.

        Returns:
            (B, S, D), or (B, R, D) with `readers`.
        """
        normed = self.attention_norm(x)
        if readers is None:
            attended = self.attention(normed, bias)
        else:
            attended = self.attention(normed, bias, gather_tokens(normed, readers))
            x = gather_tokens(x, readers)
        x = x + self._residual(attended, self.attention_scale)
        if len(route) == 1:
            return x + self._residual(self.expert(route[0][0])(x), self.mlp_scale)
        runs = torch.split(x, [length for _, length in route], dim=1)  # type: ignore[no-untyped-call]
        parts = [
            run + self._residual(self.expert(name)(run), self.mlp_scale)
            for (name, _), run in zip(route, runs, strict=True)
        ]
        return torch.cat(parts, dim=1)

    def expert(self, name: str) -> nn.Module:
        """Return the expert of a name; a block without a vision-language one has none for pairs."""
        return self.experts[name if name in self.experts else "shared"]

    def _residual(self, x: Tensor, scale: Tensor | None) -> Tensor:
        x = x if scale is None else x * scale.to(x.dtype)
        return drop_path(x, self.drop_path) if self.training else x


def drop_path_rate(config: VLMoConfig, layer: int) -> float:
    """Return how often training skips a branch of a block: linear from 0 to the config's rate."""
    return config.drop_path * layer / max(1, config.depth - 1)


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Zero whole samples of a residual branch, scaled so that the mean stays (Huang et al. 2016).

    Args:
        x: (B, S, D).
        rate: Probability of zero for each sample.
    """
    if rate == 0.0:
        return x
    keep = torch.rand(len(x), 1, 1, device=x.device) >= rate
    return x * keep.to(x.dtype) / (1 - rate)


def gather_scores(bias: Tensor, places: Tensor) -> Tensor:
    """Return the scores of queries at places.

    Args:
        bias: (1 or B, H or 1, S or 1, S).
        places: (B, R) int64.

    Returns:
        (B, H or 1, R or 1, S).
    """
    if bias.shape[2] == 1:
        return bias
    if len(bias) == 1:
        return bias[0][:, places].transpose(0, 1)
    return bias.gather(2, places[:, None, :, None].expand(-1, bias.shape[1], -1, bias.shape[-1]))
