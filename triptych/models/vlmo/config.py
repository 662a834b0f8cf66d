"""The sizes of a VLMo model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from triptych.core.config import check
from triptych.nn.block import BlockConfig
from triptych.nn.embeddings import check_stem

MIN_TEXT_TOKENS = 2
"""[CLS] and [SEP]: a position table knows at least these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VLMoConfig:
    """A VLMo model (Bao et al. 2022, sections 3.1 and 3.2).

    Attributes:
        image_size: Side of the square input in pixels.
        patch_size: Side of a patch in pixels; must divide `image_size` (16).
        vocab_size: Words V (30522 in bert-base-uncased).
        max_text_tokens: Longest text, [CLS] and [SEP] counted: rows of the position table (196 in
            the released language stage and in all released relative tables).
        embed_dim: Width D.
        depth: Blocks.
        num_heads: Attention heads; must divide `embed_dim`.
        mlp_ratio: Hidden width of an expert over `embed_dim` (4).
        fused_from: First block, from 0, whose pairs go through the vision-language expert; below,
            each modality has its own (paper: F = 10 of 12 and 21 of 24). `depth` leaves the
            vision-language experts out, as the released language stage does.
        experts: "multiway" gives each modality its own FFN; "shared" is a plain Transformer with
            one FFN for all, the paper's ablation.
        positions: "relative" is one bias table over both modalities and all blocks (released base
            and large); "absolute" adds a learned vector to each token (released base-plus; the
            paper's equations).
        layer_scale: Start value of the factors on each residual branch (0.1); None has none
            (released base-plus).
        drop_path: Drop path rate of the last block; it grows
            linearly from 0 in the first (0.1 in released pre-training).
        text_dropout: Dropout of text embeddings (the released code takes
            `drop_path`).
        proj_dim: Width E of the contrastive embedding (released: `embed_dim`).
        fused_contrast: Whether there is a second pair of contrastive projections, on top of the
            vision-language experts (in the released pre-training, not in the paper).
        mask_token: Whether there is a vector for masked patches, for masked image modelling.
        num_image_types: Type rows of images; NLVR2's second image has its own (2 there).
        init_std: Standard deviation of random weights (0.02).
        position_init_std: Standard deviation of random absolute positions; None takes `init_std`.
        patch_init_std: Standard deviation of random patch weights; None takes `init_std`.
        stem_widths: Channels of the convolutions of a stem in place of the linear patch projection;
            empty for none. No released weights have one; small models learn faster with it.
    """

    KIND: ClassVar[str] = "vlmo"

    vocab_size: int
    embed_dim: int
    depth: int
    num_heads: int
    fused_from: int
    image_size: int = 224
    patch_size: int = 16
    max_text_tokens: int = 196
    mlp_ratio: float = 4.0
    experts: Literal["multiway", "shared"] = "multiway"
    positions: Literal["relative", "absolute"] = "relative"
    layer_scale: float | None = 0.1
    drop_path: float = 0.1
    text_dropout: float = 0.1
    proj_dim: int = 768
    fused_contrast: bool = True
    mask_token: bool = True
    num_image_types: int = 1
    init_std: float = 0.02
    position_init_std: float | None = None
    patch_init_std: float | None = None
    stem_widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Reject sizes that do not fit."""
        for name in ("vocab_size", "depth", "proj_dim", "num_image_types"):
            check(getattr(self, name) > 0, name, getattr(self, name), "be at least 1")
        fits = self.patch_size > 0 and self.image_size > 0
        fits = fits and self.image_size % self.patch_size == 0
        check(fits, "image_size", self.image_size, f"be a multiple of patch_size {self.patch_size}")
        enough = self.max_text_tokens >= MIN_TEXT_TOKENS
        check(enough, "max_text_tokens", self.max_text_tokens, f"be at least {MIN_TEXT_TOKENS}")
        inside = 0 <= self.fused_from <= self.depth
        check(inside, "fused_from", self.fused_from, f"be from 0 to depth {self.depth}")
        check(0 <= self.drop_path < 1, "drop_path", self.drop_path, "be in [0, 1)")
        check(0 <= self.text_dropout < 1, "text_dropout", self.text_dropout, "be in [0, 1)")
        check(
            not (self.fused_contrast and self.fused_from == self.depth),
            "fused_contrast",
            True,
            f"be off without vision-language experts (fused_from = depth = {self.depth})",
        )
        check_stem(self.patch_size, self.stem_widths)
        self.block()

    @property
    def grid_size(self) -> int:
        """Patches on each side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches P of one image."""
        return self.grid_size**2

    def block(self) -> BlockConfig:
        """Return the block: pre-norm, exact GELU, eps 1e-6, no key bias, no dropout (BEiT's)."""
        return BlockConfig(
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            pre_norm=True,
            norm_eps=1e-6,
            dropout=0.0,
            attention_dropout=0.0,
            key_bias=False,
        )
