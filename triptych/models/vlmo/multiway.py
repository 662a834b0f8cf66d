"""The Multiway block: one attention for all modalities, an expert FFN for each (section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from triptych.models.vlmo.config import VLMoConfig
from triptych.nn.attention import SelfAttention
from triptych.nn.block import BlockConfig, FeedForward, gather_tokens
from triptych.nn.packing import TokenGrid


@dataclass(frozen=True, slots=True)
class Layout:
    """How the tokens of M rows stand in one flat tensor (Z, D): all image tokens, then the text.

    Attributes:
        num_rows: Images, texts or pairs M.
        num_image: Image tokens N of a row; 0 for texts alone.
        grid: Rows of the packed text tokens; None for images alone.
    """

    num_rows: int
    num_image: int
    grid: TokenGrid | None = None

    @property
    def num_text_tokens(self) -> int:
        """Text tokens T of all rows."""
        if self.grid is None:
            return 0
        slots = self.grid.slots
        return self.num_rows * self.grid.width if slots is None else len(slots)

    def runs(self, x: Tensor) -> list[tuple[str, Tensor]]:
        """Return the image tokens (M·N, D) and the text tokens (T, D), as far as there are any."""
        if self.grid is None:
            return [("image", x)]
        if not self.num_image:
            return [("text", x)]
        num_text = self.num_text_tokens
        image, text = torch.split(x, [len(x) - num_text, num_text])  # type: ignore[no-untyped-call]
        return [("image", image), ("text", text)]

    def repeat_images(self, x: Tensor, image_index: Tensor) -> Tensor:
        """Put each row's own image (M) in place of the distinct ones (B)."""
        (_, image), (_, text) = self.runs(x)
        rows = image.view(-1, self.num_image, image.shape[-1]).index_select(0, image_index)
        return torch.cat([rows.flatten(0, 1), text])

    def padded(self, x: Tensor) -> Tensor:
        """Return each row's image tokens and its padded text tokens: (M, N + L, D)."""
        parts = dict(self.runs(x))
        found = []
        if "image" in parts:
            found.append(parts["image"].view(self.num_rows, self.num_image, -1))
        if "text" in parts and self.grid is not None:
            found.append(self.grid.pad(parts["text"]))
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def per_token(self, image: Tensor, text: Tensor) -> Tensor:
        """Spread a value of each row (M,), one for its image and one for its text: (Z,)."""
        parts = [image.repeat_interleave(self.num_image)]
        if self.grid is not None:
            slots, width = self.grid.slots, self.grid.width
            own = text.repeat_interleave(width) if slots is None else text[slots // width]
            parts.append(own)
        return torch.cat(parts)


class ModalityExpert(nn.Module):
    """The FFN of one modality with its own LayerNorm: FFN(LN(x)).

    Deviation from the paper's equation, as in the released code: the norm belongs to the expert.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D), token by token."""
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
        self.activation_checkpointing = False

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        bias: Tensor | None,
        *,
        fused: bool = False,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """Transform images, texts or pairs.

        Args:
            x: (Z, D) float, flat as `layout` says; of distinct images with `image_index`.
            layout: Of the result.
            bias: Additive scores of [image; text], broadcastable to (M, H, S, S).
            fused: Whether tokens go through the vision-language expert.
            image_index: (M,) int64, the image of each text, where they are distinct ones. What does
                not depend on the text is computed once an image.

        Returns:
            (Z, D).
        """
        if self._recomputes():
            return checkpoint(  # type: ignore[no-any-return]
                self._transform, x, layout, bias, fused, image_index, use_reentrant=False
            )
        return self._transform(x, layout, bias, fused, image_index)

    def _recomputes(self) -> bool:
        return self.activation_checkpointing and torch.is_grad_enabled()

    def _transform(
        self,
        x: Tensor,
        layout: Layout,
        bias: Tensor | None,
        fused: bool,
        image_index: Tensor | None,
    ) -> Tensor:
        attended = self._attend(self.attention_norm(x), layout, bias, image_index)
        if image_index is not None:
            x = layout.repeat_images(x, image_index)
        x = x + self._branch(attended, self.attention_scale, layout, apart=False)
        if fused:
            part = self.expert("fused")(x)
        else:
            parts = [self.expert(name)(run) for name, run in layout.runs(x)]
            part = parts[0] if len(parts) == 1 else torch.cat(parts)
        return x + self._branch(part, self.mlp_scale, layout, apart=not fused)

    def read(self, x: Tensor, bias: Tensor | None, places: Tensor, expert: str) -> Tensor:
        """Transform only the tokens that somebody reads; all tokens are attended.

        Args:
            x: (B, S, D) float.
            bias: Additive scores, broadcastable to (B, H, R, S).
            places: (B, R) int64 places in the sequence.
            expert: "text", "image" or "fused".

        Returns:
            (B, R, D): what `forward` gives at those positions.
        """
        if self._recomputes():
            return checkpoint(self._read, x, bias, places, expert, use_reentrant=False)  # type: ignore[no-any-return]
        return self._read(x, bias, places, expert)

    def _read(self, x: Tensor, bias: Tensor | None, places: Tensor, expert: str) -> Tensor:
        normed, num_read = self.attention_norm(x), places.shape[1]
        layout = Layout(len(x), num_read)
        attended = self.attention(normed, bias, gather_tokens(normed, places)).flatten(0, 1)
        x = gather_tokens(x, places).flatten(0, 1)
        x = x + self._branch(attended, self.attention_scale, layout, apart=False)
        part = self.expert(expert)(x)
        x = x + self._branch(part, self.mlp_scale, layout, apart=False)
        return x.view(layout.num_rows, num_read, -1)

    def expert(self, name: str) -> nn.Module:
        """Return the expert of a name; the shared one where there is no other."""
        return self.experts[name if name in self.experts else "shared"]

    def _attend(
        self, normed: Tensor, layout: Layout, bias: Tensor | None, image_index: Tensor | None
    ) -> Tensor:
        runs = dict(layout.runs(normed))
        if "image" not in runs:
            return self.attention(normed, bias, grid=layout.grid)  # type: ignore[no-any-return]
        image = runs["image"].view(-1, layout.num_image, normed.shape[-1])
        if layout.grid is None:
            return self.attention(image, bias).flatten(0, 1)  # type: ignore[no-any-return]
        assert bias is not None
        return self.attention.joint(image, runs["text"], bias, layout.grid, image_index)

    def _branch(self, part: Tensor, scale: Tensor | None, layout: Layout, *, apart: bool) -> Tensor:
        """Return γ ⊙ part, with whole rows skipped in training; images and texts `apart` or not."""
        part = part if scale is None else part * scale.to(part.dtype)
        if not self.training or self.drop_path == 0.0:
            return part
        image = text = drop_path_factors(layout.num_rows, self.drop_path, part.device)
        if apart:
            text = drop_path_factors(layout.num_rows, self.drop_path, part.device)
        return part * layout.per_token(image, text).to(part.dtype)[:, None]


def drop_path_rate(config: VLMoConfig, layer: int) -> float:
    """Return how often training skips a branch of a block: linear from 0 to the config's rate."""
    return config.drop_path * layer / max(1, config.depth - 1)


def drop_path_factors(num_rows: int, rate: float, device: torch.device) -> Tensor:
    """Draw the factor of each row's residual branch (Huang et al. 2016).

    Returns:
        (M,) float32: 0 with probability `rate`, else 1 / (1 - rate), so that the mean stays.
    """
    return (torch.rand(num_rows, device=device) >= rate).float() / (1 - rate)


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
