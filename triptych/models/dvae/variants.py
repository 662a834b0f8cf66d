"""Registered sizes; `vocab_size` is the number of codes."""

from __future__ import annotations

from collections.abc import Callable

from triptych.models.dvae.config import DVAEConfig


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
