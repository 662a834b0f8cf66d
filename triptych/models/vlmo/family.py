"""VLMo's entry in the table of families: its registered sizes and how it is stored.

Sizes are of the paper, section 4.1, and the released code's table of architectures.
"""

from __future__ import annotations

from collections.abc import Callable

from triptych.models.base import Family, ModelSizes
from triptych.models.vlmo.config import VLMoConfig
from triptych.models.vlmo.convert import CONVERTER, resize_model_state
from triptych.models.vlmo.model import VLMo

BERT_VOCAB_SIZE = 30522


def vlmo_tiny(*, image_size: int | None = None, vocab_size: int | None = None) -> VLMoConfig:
    """Learns the built-in scenes on two CPU cores in minutes; not in the paper."""
    return VLMoConfig(
        image_size=image_size or 64,
        vocab_size=vocab_size or 512,
        max_text_tokens=64,
        embed_dim=128,
        depth=6,
        num_heads=4,
        fused_from=4,
        positions="absolute",
        layer_scale=None,
        drop_path=0.0,
        text_dropout=0.0,
        proj_dim=128,
        fused_contrast=False,
        init_std=0.05,
        position_init_std=0.7,
        patch_init_std=0.1,
        stem_widths=(16, 32, 64),
    )


def vlmo_small(*, image_size: int | None = None, vocab_size: int | None = None) -> VLMoConfig:
    """39 M parameters at 128 px, for a GPU; not in the paper."""
    return VLMoConfig(
        image_size=image_size or 128,
        vocab_size=vocab_size or 8192,
        max_text_tokens=128,
        embed_dim=384,
        depth=10,
        num_heads=6,
        fused_from=8,
        positions="absolute",
        drop_path=0.05,
        text_dropout=0.05,
        proj_dim=384,
        fused_contrast=False,
        position_init_std=0.7,
        patch_init_std=0.1,
        stem_widths=(32, 64, 128),
    )


def vlmo_base_patch16(
    *, image_size: int | None = None, vocab_size: int | None = None
) -> VLMoConfig:
    """VLMo-Base: 12 blocks, vision-language experts in the top two (175 M without heads)."""
    return VLMoConfig(
        image_size=image_size or 224,
        vocab_size=vocab_size or BERT_VOCAB_SIZE,
        embed_dim=768,
        depth=12,
        num_heads=12,
        fused_from=10,
    )


def vlmo_base_plus_patch16(
    *, image_size: int | None = None, vocab_size: int | None = None
) -> VLMoConfig:
    """The released code's base-plus, not in the paper: 24 narrow blocks (167 M without heads)."""
    return VLMoConfig(
        image_size=image_size or 224,
        vocab_size=vocab_size or BERT_VOCAB_SIZE,
        embed_dim=544,
        depth=24,
        num_heads=16,
        fused_from=21,
        positions="absolute",
        layer_scale=None,
        proj_dim=544,
    )


def vlmo_large_patch16(
    *, image_size: int | None = None, vocab_size: int | None = None
) -> VLMoConfig:
    """VLMo-Large: 24 blocks, vision-language experts in the top three (562 M without heads)."""
    return VLMoConfig(
        image_size=image_size or 224,
        vocab_size=vocab_size or BERT_VOCAB_SIZE,
        embed_dim=1024,
        depth=24,
        num_heads=16,
        fused_from=21,
        proj_dim=1024,
    )


VARIANTS: dict[str, Callable[..., VLMoConfig]] = {
    build.__name__: build
    for build in (
        vlmo_tiny,
        vlmo_small,
        vlmo_base_patch16,
        vlmo_base_plus_patch16,
        vlmo_large_patch16,
    )
}


def _sizes(config: VLMoConfig) -> ModelSizes:
    return ModelSizes(config.vocab_size, config.max_text_tokens, config.patch_size)


VLMO_FAMILY = Family(
    title="VLMo",
    config_class=VLMoConfig,
    build=VLMo,
    variants=VARIANTS,
    resize=resize_model_state,
    sizes=_sizes,
    converter=CONVERTER,
)
