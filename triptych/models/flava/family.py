"""FLAVA's entry in the table of families: its registered sizes and how it is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from triptych.models.base import Family, ModelSizes
from triptych.models.dvae import family as dvae_family
from triptych.models.dvae.config import codebook_image_size
from triptych.models.flava.config import FLAVAConfig, FLAVAFusionConfig, FLAVAVisionConfig
from triptych.models.flava.convert import CONVERTER
from triptych.models.flava.model import FLAVA, resize_model_state
from triptych.nn.encoder import TextConfig

BERT_VOCAB_SIZE = 30522


def flava_tiny(*, image_size: int | None = None, vocab_size: int | None = None) -> FLAVAConfig:
    """Learns the built-in scenes on two CPU cores in minutes; not in the paper."""
    size, patch = image_size or 64, 16
    codebook = dvae_family.dvae_tiny(image_size=codebook_image_size(size, patch))
    return FLAVAConfig(
        vision=FLAVAVisionConfig(
            image_size=size,
            patch_size=patch,
            embed_dim=128,
            depth=4,
            num_heads=4,
            patch_init_std=0.1,
            position_init_std=0.7,
            stem_widths=(16, 32, 64),
        ),
        text=TextConfig(
            vocab_size=vocab_size or 512,
            embed_dim=128,
            num_heads=4,
            max_positions=64,
            dropout=0.0,
            attention_dropout=0.0,
            pre_norm=True,
        ),
        text_depth=2,
        fusion=FLAVAFusionConfig(embed_dim=128, depth=2, num_heads=4),
        proj_dim=128,
        num_codes=codebook.num_codes,
        codebook=codebook,
        padded_text_len=64,
        init_std=0.05,
    )


def flava_small(*, image_size: int | None = None, vocab_size: int | None = None) -> FLAVAConfig:
    """47 M parameters at 128 px, for a GPU; not in the paper."""
    size, patch = image_size or 128, 16
    codebook = dvae_family.dvae_small(image_size=codebook_image_size(size, patch))
    return FLAVAConfig(
        vision=FLAVAVisionConfig(
            image_size=size,
            patch_size=patch,
            embed_dim=384,
            depth=8,
            num_heads=6,
            patch_init_std=0.1,
            position_init_std=0.7,
            stem_widths=(32, 64, 128),
        ),
        text=TextConfig(
            vocab_size=vocab_size or 8192,
            embed_dim=384,
            num_heads=6,
            max_positions=128,
            dropout=0.0,
            attention_dropout=0.0,
            pre_norm=True,
        ),
        text_depth=6,
        fusion=FLAVAFusionConfig(embed_dim=384, depth=4, num_heads=6),
        proj_dim=384,
        num_codes=codebook.num_codes,
        codebook=codebook,
    )


def flava_full(*, image_size: int | None = None, vocab_size: int | None = None) -> FLAVAConfig:
    """FLAVA as released (facebook/flava-full): 357,645,303 parameters, 303,859,063 trainable.

    Padding is masked, as transformers does now; `flava_full_attended` does not mask it.
    """
    return _paper_like(768, 3072, 12, (12, 12, 6), image_size, vocab_size, released_poolers=True)


def flava_full_attended(
    *, image_size: int | None = None, vocab_size: int | None = None
) -> FLAVAConfig:
    """As facebook/flava-full was trained: padding is attended, in texts of 77 tokens.

    Its authors' losses on their weights are lower so than with padding masked.
    """
    config = flava_full(image_size=image_size, vocab_size=vocab_size)
    return replace(config, pad_attention="attended")


def flava_900m(*, image_size: int | None = None, vocab_size: int | None = None) -> FLAVAConfig:
    """The first of torchmultimodal's scaling presets: layers 24, 24 and 12 of width 1024."""
    return _paper_like(1024, 4096, 16, (24, 24, 12), image_size, vocab_size)


def flava_1_8b(*, image_size: int | None = None, vocab_size: int | None = None) -> FLAVAConfig:
    """Torchmultimodal's preset: layers 32, 32 and 16 of width 1280."""
    return _paper_like(1280, 5120, 16, (32, 32, 16), image_size, vocab_size)


def flava_2_7b(*, image_size: int | None = None, vocab_size: int | None = None) -> FLAVAConfig:
    """Torchmultimodal's preset: layers 40, 40 and 20 of width 1408."""
    return _paper_like(1408, 6144, 16, (40, 40, 20), image_size, vocab_size)


def flava_4_8b(*, image_size: int | None = None, vocab_size: int | None = None) -> FLAVAConfig:
    """Torchmultimodal's preset: layers 48, 48 and 24 of width 1664."""
    return _paper_like(1664, 8192, 16, (48, 48, 24), image_size, vocab_size)


def flava_10b(*, image_size: int | None = None, vocab_size: int | None = None) -> FLAVAConfig:
    """Torchmultimodal's preset: layers 64, 64 and 40 of width 2048."""
    return _paper_like(2048, 10240, 16, (64, 64, 40), image_size, vocab_size)


def _paper_like(
    width: int,
    mlp_dim: int,
    num_heads: int,
    depths: tuple[int, int, int],
    image_size: int | None,
    vocab_size: int | None,
    *,
    released_poolers: bool = False,
) -> FLAVAConfig:
    """Return three encoders of one width; `depths` are those of image, text and multimodal."""
    size, patch, ratio = image_size or 224, 16, mlp_dim / width
    return FLAVAConfig(
        vision=FLAVAVisionConfig(
            image_size=size,
            patch_size=patch,
            embed_dim=width,
            depth=depths[0],
            num_heads=num_heads,
            mlp_ratio=ratio,
        ),
        text=TextConfig(
            vocab_size=vocab_size or BERT_VOCAB_SIZE,
            embed_dim=width,
            num_heads=num_heads,
            mlp_ratio=ratio,
            dropout=0.0,
            attention_dropout=0.0,
            pre_norm=True,
        ),
        text_depth=depths[1],
        fusion=FLAVAFusionConfig(
            embed_dim=width, depth=depths[2], num_heads=num_heads, mlp_ratio=ratio
        ),
        proj_dim=width,
        codebook=dvae_family.dvae_dalle(image_size=codebook_image_size(size, patch)),
        released_poolers=released_poolers,
    )


VARIANTS: dict[str, Callable[..., FLAVAConfig]] = {
    build.__name__: build
    for build in (
        flava_tiny,
        flava_small,
        flava_full,
        flava_full_attended,
        flava_900m,
        flava_1_8b,
        flava_2_7b,
        flava_4_8b,
        flava_10b,
    )
}


def _sizes(config: FLAVAConfig) -> ModelSizes:
    text = config.text
    return ModelSizes(text.vocab_size, text.max_positions, config.vision.patch_size)


FLAVA_FAMILY = Family(
    title="FLAVA",
    config_class=FLAVAConfig,
    build=FLAVA,
    variants=VARIANTS,
    resize=resize_model_state,
    sizes=_sizes,
    vision_parameters=("visual_encoder.",),
    converter=CONVERTER,
    released_variant="flava_full",
)
