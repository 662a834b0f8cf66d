"""The dVAE's entry in the table of families: its registered sizes and how it is stored.

A size's `vocab_size` is the number of codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from triptych.models.base import Family, ModelSizes, State
from triptych.models.dvae.config import DVAEConfig
from triptych.models.dvae.model import DVAE


def dvae_tiny(*, image_size: int | None = None, vocab_size: int | None = None) -> DVAEConfig:
    """Learns the built-in scenes on one CPU core in minutes; 32 px for 64 px with patch 16."""
    return DVAEConfig(
        image_size=image_size or 32,
        num_codes=vocab_size or 256,
        hidden_dim=32,
        blocks_per_group=1,
        code_dim=64,
    )


def dvae_small(*, image_size: int | None = None, vocab_size: int | None = None) -> DVAEConfig:
    """For a GPU; 64 px for 128 px with patch 16."""
    return DVAEConfig(
        image_size=image_size or 64,
        num_codes=vocab_size or 1024,
        hidden_dim=64,
        blocks_per_group=2,
        code_dim=128,
    )


def dvae_dalle(*, image_size: int | None = None, vocab_size: int | None = None) -> DVAEConfig:
    """DALL-E's, whose codes BEiT and FLAVA predict; 112 px for 224 px with patch 16."""
    return DVAEConfig(image_size=image_size or 112, num_codes=vocab_size or 8192)


VARIANTS: dict[str, Callable[..., DVAEConfig]] = {
    build.__name__: build for build in (dvae_tiny, dvae_small, dvae_dalle)
}


def _resize(state: State, config: DVAEConfig, image_size: int) -> tuple[State, DVAEConfig]:
    return state, replace(config, image_size=image_size)  # convolutions fit every size


def _sizes(config: DVAEConfig) -> ModelSizes:
    return ModelSizes(config.num_codes, 0, config.stride)


DVAE_FAMILY = Family(
    title="dVAE",
    config_class=DVAEConfig,
    build=DVAE,
    variants=VARIANTS,
    resize=_resize,
    sizes=_sizes,
    vision_parameters=("encoder.",),
    reads_text=False,
)
