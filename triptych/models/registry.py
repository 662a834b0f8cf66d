"""Registered variants, and models built by name."""

from __future__ import annotations

from collections.abc import Callable

from triptych.core.registry import Registry
from triptych.models.mplug import variants as mplug_variants
from triptych.models.mplug.config import MPLUGConfig
from triptych.models.mplug.model import MPLUG

ModelConfig = MPLUGConfig

VARIANTS: Registry[Callable[..., ModelConfig]] = Registry("model")
for _name, _build in mplug_variants.VARIANTS.items():
    VARIANTS.register(_name)(_build)


def list_models() -> list[str]:
    """Return the names of all registered variants."""
    return VARIANTS.names()


def model_config(
    name: str, *, image_size: int | None = None, vocab_size: int | None = None
) -> ModelConfig:
    """Return the config of a registered variant.

    Args:
        name: Such as "mplug_tiny".
        image_size: Side of the input in pixels instead of the variant's own.
        vocab_size: Words instead of the variant's own.

    Raises:
        ConfigError: No such variant; the message names the nearest.
    """
    return VARIANTS.get(name)(image_size=image_size, vocab_size=vocab_size)


def build_model(config: ModelConfig) -> MPLUG:
    """Build a model with fresh weights from its config."""
    return MPLUG(config)


def create_model(
    name: str, *, image_size: int | None = None, vocab_size: int | None = None
) -> MPLUG:
    """Build a registered variant with fresh weights.

    Args:
        name: Such as "mplug_tiny"; `list_models()` gives all.
        image_size: Side of the input in pixels instead of the variant's own.
        vocab_size: Words instead of the variant's own.

    Raises:
        ConfigError: No such variant, or sizes that do not fit.
    """
    return build_model(model_config(name, image_size=image_size, vocab_size=vocab_size))
