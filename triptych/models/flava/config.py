"""The sizes of a FLAVA model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from triptych.core.config import check
from triptych.models.dvae.config import DVAEConfig, codebook_image_size
from triptych.nn.block import BlockConfig
from triptych.nn.embeddings import check_stem
from triptych.nn.encoder import TextConfig

NORM_EPS = 1e-12
"""Of every LayerNorm, heads included, as in transformers (torchmultimodal's heads have 1e-5)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FLAVAVisionConfig:
    """The image encoder: a ViT with a mask token (paper, section 3.1).

    Attributes:
        image_size: Side of the square input in pixels (224).
        patch_size: Side of a patch in pixels; must divide `image_size` (16).
        embed_dim: Width D (768).
        depth: Number of blocks (12).
        num_heads: Attention heads (12).
        mlp_ratio: Hidden width of the FFN over `embed_dim` (4).
        patch_init_std: Standard deviation of random patch weights; None takes the model's
            `init_std`.
        position_init_std: Standard deviation of a random position table; None takes the
            model's `init_std`.
        stem_widths: Channels of convolutions of stride 2 before the patch projection; none in the
            paper. With them, the pixels of masked patches are 0.
    """

    image_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
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
    def grid_size(self) -> int:
        """Patches on a side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches P of one image."""
        return self.grid_size**2

    def block(self) -> BlockConfig:
        """Return the block: pre-norm, exact GELU, no dropout."""
        return flava_block(self.embed_dim, self.num_heads, self.mlp_ratio)


@dataclass(frozen=True, kw_only=True, slots=True)
class FLAVAFusionConfig:
    """The multimodal encoder (paper, section 3.1): blocks over both sequences and a [CLS] token.

    Attributes:
        embed_dim: Width; may differ from those of the other encoders (768).
        depth: Number of blocks (6).
        num_heads: Attention heads (12).
        mlp_ratio: Hidden width of the FFN over `embed_dim` (4).
    """

    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        """Reject an empty stack."""
        check(self.depth > 0, "depth", self.depth, "be at least 1")

    def block(self) -> BlockConfig:
        """Return the block: pre-norm, exact GELU, no dropout."""
        return flava_block(self.embed_dim, self.num_heads, self.mlp_ratio)


@dataclass(frozen=True, kw_only=True, slots=True)
class FLAVAConfig:
    """A FLAVA model (Singh et al. 2022, section 3).

    Attributes:
        vision: The image encoder.
        text: Width and tables of the text encoder; FLAVA's is pre-norm and has no dropout.
        text_depth: Layers of the text encoder (12).
        fusion: The multimodal encoder.
        proj_dim: Width E of the contrastive embedding (768).
        num_codes: Entries of the image codebook, which MIM and MMM predict (8192).
        codebook: The frozen image tokenizer inside the model; None: there is none, and batches then
            bring `image_codes`.
        pad_attention: "masked": padding is never attended. "attended": the multimodal encoder
            attends to padding, and texts are padded to `padded_text_len`; so the released weights
            were trained (their published losses are lower with it).
        padded_text_len: Tokens of every text where padding is attended (77).
        released_poolers: Whether to keep the three tanh poolers of the released layout. No loss
            trains them and nothing here reads them; a released checkpoint goes back whole.
        init_std: Standard deviation of random weights (0.02). Class tokens, the mask token and
            positions are random too: released code starts them at 0, where a LayerNorm of eps
            1e-12 multiplies
            gradients by a million.
    """

    vision: FLAVAVisionConfig
    text: TextConfig
    text_depth: int = 12
    fusion: FLAVAFusionConfig
    proj_dim: int = 768
    num_codes: int = 8192
    codebook: DVAEConfig | None = None
    pad_attention: Literal["masked", "attended"] = "masked"
    padded_text_len: int = 77
    released_poolers: bool = False
    init_std: float = 0.02

    def __post_init__(self) -> None:
        """Reject parts that do not fit together."""
        check(self.text.pre_norm, "text.pre_norm", self.text.pre_norm, "be True in FLAVA")
        for name in ("text_depth", "proj_dim", "padded_text_len"):
            check(getattr(self, name) > 0, name, getattr(self, name), "be at least 1")
        check(self.num_codes >= 2, "num_codes", self.num_codes, "be at least 2")
        if self.codebook is not None:
            codes = self.codebook.num_codes
            check(codes == self.num_codes, "codebook.num_codes", codes, f"be {self.num_codes}")
            side = codebook_image_size(self.vision.image_size, self.vision.patch_size)
            size = self.codebook.image_size
            check(size == side, "codebook.image_size", size, f"be {side}, one code a patch")
        if self.pad_attention == "attended":
            length, table = self.padded_text_len, self.text.max_positions
            check(length <= table, "padded_text_len", length, f"not exceed max_positions {table}")

    @property
    def codebook_image_size(self) -> int:
        """Side in pixels of the view of the image that gives one code a patch."""
        return codebook_image_size(self.vision.image_size, self.vision.patch_size)


def flava_block(embed_dim: int, num_heads: int, mlp_ratio: float) -> BlockConfig:
    """Return the block of all three encoders: pre-norm, exact GELU, eps 1e-12, no dropout."""
    return BlockConfig(
        embed_dim=embed_dim,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        pre_norm=True,
        norm_eps=NORM_EPS,
        dropout=0.0,
        attention_dropout=0.0,
    )
