"""The vision transformer of OpenAI's CLIP."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from triptych.core.config import check
from triptych.core.errors import DataError
from triptych.nn.block import Block, BlockConfig
from triptych.nn.embeddings import build_patches, check_stem


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """A vision transformer.

    Attributes:
        image_size: Side of the square input in pixels.
        patch_size: Side of a patch in pixels; must divide `image_size`.
        embed_dim: Width D.
        depth: Number of blocks.
        num_heads: Attention heads; CLIP uses `embed_dim` / 64.
        attention_dropout: Share of attention weights dropped in training (0.1 in released mPLUG;
            CLIP itself has none).
        patch_init_std: Deviation of fresh patch weights; None takes the model's `init_std`.
        position_init_std: Deviation of a fresh position table; None takes the model's `init_std`.
            Where it is far below the deviation of the patch states, a model that starts from
            scratch learns positions very slowly.
        stem_widths: Channels of convolutions of stride 2 before the patch projection; none in CLIP.
    """

    image_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    attention_dropout: float = 0.1
    patch_init_std: float | None = None
    position_init_std: float | None = None
    stem_widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Reject sizes that do not fit."""
        fits = self.patch_size > 0 and self.image_size % self.patch_size == 0
        check(fits, "image_size", self.image_size, f"be a multiple of patch_size {self.patch_size}")
        check_stem(self.patch_size, self.stem_widths)
        check(self.depth > 0, "depth", self.depth, "be at least 1")

    @property
    def num_patches(self) -> int:
        """Patches P of one image."""
        return (self.image_size // self.patch_size) ** 2

    def block(self) -> BlockConfig:
        """Return the block: pre-norm, QuickGELU, no dropout but in the attention."""
        return BlockConfig(
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            activation="quick_gelu",
            pre_norm=True,
            norm_eps=1e-5,
            dropout=0.0,
            attention_dropout=self.attention_dropout,
        )


class VisionTransformer(nn.Module):
    """CLIP's image tower without its final projection (Radford et al. 2021, section 2.4).

    x₀ = LN([class; patches] + positions); pre-norm blocks; a last LayerNorm on all tokens.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        width = config.embed_dim
        self.patch_embedding = build_patches(
            width, config.patch_size, config.stem_widths, bias=False, init_std=config.patch_init_std
        )
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.position_embedding = nn.Parameter(torch.empty(1 + config.num_patches, width))
        self.norm_pre = nn.LayerNorm(width, eps=1e-5)
        self.blocks = nn.ModuleList(Block(config.block()) for _ in range(config.depth))
        self.norm_post = nn.LayerNorm(width, eps=1e-5)

    def forward(self, image: Tensor, *, cls_only: bool = False) -> Tensor:
        """Encode normalised pixels.

        Args:
            image: (B, 3, image_size, image_size) float.
            cls_only: Whether nothing but the [CLS] state is wanted; the last block then computes
                no other.

        Returns:
            (B, N, D) states, the [CLS] token first; (B, 1, D) with `cls_only`.

        Raises:
            DataError: The pixels have another size than the position table.
        """
        size = self.config.image_size
        if image.shape[-2:] != (size, size):
            raise DataError(
                f"image is {tuple(image.shape[-2:])} px but the model takes {size} x {size}: "
                "resize it, or load the model with that image size"
            )
        patches = self.patch_embedding(image)  # (B, P, D)
        cls = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        x = torch.cat([cls, patches], dim=1) + self.position_embedding.to(patches.dtype)
        x = self.norm_pre(x)
        for number, block in enumerate(self.blocks, start=1):
            if cls_only and number == len(self.blocks) and isinstance(block, Block):
                x = block.read(x, torch.zeros(x.shape[0], 1, dtype=torch.int64, device=x.device))
            else:
                x = block(x)
        return self.norm_post(x)  # type: ignore[no-any-return]
