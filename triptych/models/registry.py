"""Registered variants of all families, and models built by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triptych.core.registry import Registry
from triptych.models.families import FAMILIES, family_of

VARIANTS: Registry[Callable[..., Any]] = Registry("model")
for _family in FAMILIES.values():
    for _name, _build in _family.variants.items():
        VARIANTS.register(_name)(_build)


def list_models() -> list[str]:
    """Return the names of all registered vision-language models."""
    families = (family for family in FAMILIES.values() if family.reads_text)
    return [name for family in families for name in family.variants]


def list_image_tokenizers() -> list[str]:
    """Return the names of all registered image tokenizers."""
    families = (family for family in FAMILIES.values() if not family.reads_text)
    return [name for family in families for name in family.variants]


def model_config(name: str, *, image_size: int | None = None, vocab_size: int | None = None) -> Any:
    """Return the config of a registered variant.

    Args:
        name: Such as "mplug_tiny".
        image_size: Side of the input in pixels instead of the variant's own.
        vocab_size: Words instead of the variant's own.

    Raises:
        ConfigError: No such variant; the message names the nearest.
    """
    return VARIANTS.get(name)(image_size=image_size, vocab_size=vocab_size)


def build_model(config: Any) -> Any:
    """Build a model with fresh weights from its config.

    Raises:
        ConfigError: The config belongs to no family.
    """
    return family_of(config).build(config)


def create_model(name: str, *, image_size: int | None = None, vocab_size: int | None = None) -> Any:
    """Build a registered variant with fresh weights.

    Args:
        name: Such as "mplug_tiny"; `list_models()` gives all.
        image_size: Side of the input in pixels instead of the variant's own.
        vocab_size: Words instead of the variant's own.

    Raises:
        ConfigError: No such variant, or sizes that do not fit.
    """
    return build_model(model_config(name, image_size=image_size, vocab_size=vocab_size))
