"""mPLUG's entry in the table of families: its registered sizes and how it is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from triptych.models.base import Family, ModelSizes, State
from triptych.models.mplug.config import MPLUGConfig
from triptych.models.mplug.convert import CONVERTER
from triptych.models.mplug.model import MPLUG
from triptych.nn.encoder import TextConfig
from triptych.nn.positions import resize_position_table
from triptych.nn.vision import VisionConfig

BERT_VOCAB_SIZE = 30522


def mplug_tiny(*, image_size: int | None = None, vocab_size: int | None = None) -> MPLUGConfig:
    """Learns the built-in scenes on two CPU cores in minutes; not in the paper."""
    return MPLUGConfig(
        vision=VisionConfig(
            image_size=image_size or 64,
            patch_size=16,
            embed_dim=128,
            depth=4,
            num_heads=4,
            attention_dropout=0.0,
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
        fusion_depth=3,
        connected_layers=(1,),
        connected_image_residual=False,
        decoder_depth=2,
        proj_dim=128,
        init_std=0.05,
    )


def mplug_small(*, image_size: int | None = None, vocab_size: int | None = None) -> MPLUGConfig:
    """47 M parameters at 128 px, for a GPU; not in the paper."""
    return MPLUGConfig(
        vision=VisionConfig(
            image_size=image_size or 128,
            patch_size=16,
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
            pre_norm=True,
        ),
        text_depth=4,
        fusion_depth=4,
        connected_layers=(2,),
        connected_image_residual=False,
        decoder_depth=4,
    )


def mplug_base_patch16_256(
    *, image_size: int | None = None, vocab_size: int | None = None
) -> MPLUGConfig:
    """MPLUG with ViT-B/16 as released: stride 3, so fusion layer 3 is connected (347 M live)."""
    return MPLUGConfig(
        vision=VisionConfig(
            image_size=image_size or 256, patch_size=16, embed_dim=768, depth=12, num_heads=12
        ),
        text=TextConfig(vocab_size=vocab_size or BERT_VOCAB_SIZE, embed_dim=768, num_heads=12),
        connected_layers=(3,),
    )


def mplug_large_patch14_224(
    *, image_size: int | None = None, vocab_size: int | None = None
) -> MPLUGConfig:
    """MPLUG with ViT-L/14 as released: stride 6, so no fusion layer is connected (566 M live)."""
    return MPLUGConfig(
        vision=VisionConfig(
            image_size=image_size or 224, patch_size=14, embed_dim=1024, depth=24, num_heads=16
        ),
        text=TextConfig(vocab_size=vocab_size or BERT_VOCAB_SIZE, embed_dim=768, num_heads=12),
        connected_layers=(),
    )


VARIANTS: dict[str, Callable[..., MPLUGConfig]] = {
    build.__name__: build
    for build in (mplug_tiny, mplug_small, mplug_base_patch16_256, mplug_large_patch14_224)
}


def _resize(state: State, config: MPLUGConfig, image_size: int) -> tuple[State, MPLUGConfig]:
    resized = replace(config, vision=replace(config.vision, image_size=image_size))
    name = "visual_encoder.position_embedding"
    table = resize_position_table(state[name], resized.vision.num_patches)
    return {**state, name: table}, resized


def _sizes(config: MPLUGConfig) -> ModelSizes:
    text = config.text
    return ModelSizes(text.vocab_size, text.max_positions, config.vision.patch_size)


MPLUG_FAMILY = Family(
    title="mPLUG",
    config_class=MPLUGConfig,
    build=MPLUG,
    variants=VARIANTS,
    resize=_resize,
    sizes=_sizes,
    vision_parameters=("visual_encoder.",),
    choices=("fusion", "connected_layers", "connected_image_residual"),
    converter=CONVERTER,
)
