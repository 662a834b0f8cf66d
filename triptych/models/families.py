"""Every family of models by name: build a variant, rebuild a stored model, add a family.

Each family says what it is in its own folder (`models/mplug/family.py` and so on). A package of
a user adds another one with `register_family`; create_model, recipes, import and export, serving
and the command line then know it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from triptych.core.config import check, from_dict, kind_of, to_dict
from triptych.core.errors import CheckpointError, ConfigError, nearest
from triptych.core.reading import reading
from triptych.core.registry import Registry
from triptych.models.base import Family, ModelSizes, State
from triptych.models.conversion import Converter
from triptych.models.dvae.family import DVAE_FAMILY
from triptych.models.flava.family import FLAVA_FAMILY
from triptych.models.mplug.family import MPLUG_FAMILY
from triptych.models.vlmo.family import VLMO_FAMILY

FAMILIES: Registry[Family] = Registry("model family")
"""By the `kind` of the config class."""

MAX_SIZE = 1 << 24
"""Of any width, length or vocabulary of a model."""

MAX_SIZES = {"image_size": 8192, "depth": 1000, "blocks_per_group": 1000, "num_heads": 4096}
"""Of fields whose names end so: a loop or an image goes over each."""

VARIANTS: Registry[Callable[..., Any]] = Registry("model")
"""The configs of all families' registered sizes."""

CONVERTERS: Registry[Converter] = Registry("model family")
"""Of the families whose released checkpoints can be imported and exported."""


def register_family(family: Family) -> Family:
    """Add a family; all that is built on models then knows it.

    Raises:
        ConfigError: Its config's `kind`, or the name of a variant, is taken.
    """
    kind = kind_of(family.config_class)
    taken = [name for name in family.variants if name in VARIANTS]
    if taken:
        raise ConfigError(f"{family.title}: there is a model {taken[0]!r} already")
    FAMILIES.register(kind)(family)
    for name, config in family.variants.items():
        VARIANTS.register(name)(config)
    if family.converter is not None:
        CONVERTERS.register(kind)(family.converter)
    return family


for _family in (MPLUG_FAMILY, FLAVA_FAMILY, VLMO_FAMILY, DVAE_FAMILY):
    register_family(_family)


def family_of(config: Any) -> Family:
    """Return the family that a config belongs to."""
    for name in FAMILIES:
        if isinstance(config, FAMILIES.get(name).config_class):
            return FAMILIES.get(name)
    raise ConfigError(f"{type(config).__name__} is the config of no family ({', '.join(FAMILIES)})")


def model_sizes(config: Any) -> ModelSizes:
    """Return what a model of any family reads at most, by its config."""
    return family_of(config).sizes(config)


def recognised_families(names: Iterable[str]) -> list[str]:
    """Return the families whose released files have names like these."""
    listed = list(names)
    return [family for family in CONVERTERS if CONVERTERS.get(family).recognises(listed)]


def list_models() -> list[str]:
    """Return the names of all registered vision-language models."""
    return _variants(reads_text=True)


def list_image_tokenizers() -> list[str]:
    """Return the names of all registered image tokenizers."""
    return _variants(reads_text=False)


def _variants(*, reads_text: bool) -> list[str]:
    families = [FAMILIES.get(name) for name in FAMILIES]
    return [name for f in families if f.reads_text == reads_text for name in f.variants]


def model_config(name: str, *, image_size: int | None = None, vocab_size: int | None = None) -> Any:
    """Return the config of a registered variant.

    Args:
        name: Such as "mplug_tiny".
        image_size: Side of the input in pixels instead of the variant's own.
        vocab_size: Tokens of the vocabulary instead of the variant's own.

    Raises:
        ConfigError: No such variant; the message names the nearest.
    """
    return VARIANTS.get(name)(image_size=image_size, vocab_size=vocab_size)


def build_model(config: Any) -> Any:
    """Build a randomly initialised model from its config.

    Raises:
        ConfigError: The config belongs to no family.
    """
    return family_of(config).build(config)


def create_model(name: str, *, image_size: int | None = None, vocab_size: int | None = None) -> Any:
    """Build a registered variant, randomly initialised.

    Args:
        name: Such as "mplug_tiny"; `list_models()` gives all.
        image_size: Side of the input in pixels instead of the variant's own.
        vocab_size: Tokens of the vocabulary instead of the variant's own.

    Raises:
        ConfigError: No such variant, or sizes that do not fit.
    """
    return build_model(model_config(name, image_size=image_size, vocab_size=vocab_size))


def read_config(stored: Mapping[str, Any], where: str) -> Any:
    """Return the config of a stored model.

    Args:
        stored: What `to_dict(config, tagged=True)` returned.
        where: What messages name, such as the folder.

    Raises:
        CheckpointError: An unknown kind, or a bad config.
    """
    kind = stored.get("kind")
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        clue = nearest(str(kind), FAMILIES)
        raise CheckpointError(f"{where}: unknown model kind {kind!r}{clue} (known: {known})")
    with reading(where, CheckpointError):
        try:
            return model_config_of(kind, stored)
        except ConfigError as error:
            raise CheckpointError(f"{where} cannot be loaded: {error}") from error


def model_config_of(kind: str, stored: Mapping[str, Any]) -> Any:
    """Return the config of a family's model from plain values, before anything is allocated.

    Args:
        kind: The family.
        stored: Its fields; `kind` may be among them.

    Raises:
        ConfigError: A field is unknown, of the wrong type, or of a size that no model has.
    """
    plain: Any = stored
    if isinstance(stored, Mapping):
        plain = {name: value for name, value in stored.items() if name != "kind"}
    config = from_dict(FAMILIES.get(kind).config_class, plain, "model")
    for name, size in _sizes(config, "model"):
        most = next((m for ending, m in MAX_SIZES.items() if name.endswith(ending)), MAX_SIZE)
        least = 0 if isinstance(size, int) else -most
        check(least <= size <= most, name, size, f"be from {least:,} to {most:,}")
    return config


def _sizes(config: Any, where: str) -> Iterator[tuple[str, float]]:
    """Return every number of a config and of those in it, by dotted name."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{where}.{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _sizes(value, name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float):
                yield name, number


def restore_model(
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    where: str,
    *,
    image_size: int | None = None,
    train: bool = False,
) -> Any:
    """Rebuild a stored model, on the CPU and in fp32.

    Args:
        config: What `to_dict(config, tagged=True)` returned.
        weights: The state dict; every name must fit.
        where: What messages name, such as the folder.
        image_size: Another side in pixels: position tables are resized to it.
        train: Copy the weights, so that tied parameters stay one; else the model takes the given
            tensors as they are, and nothing is initialised or copied.

    Raises:
        CheckpointError: An unknown kind, a bad config, or weights that do not fit it.
    """
    built = read_config(config, where)
    family = family_of(built)
    layers = sum(int(size) for name, size in _sizes(built, "model") if name.endswith("depth"))
    if layers > len(weights):
        raise CheckpointError(
            f"{where}: config.json has {layers} layers, and there are {len(weights)} weights"
        )
    state = {
        name: value.float() if value.is_floating_point() else value
        for name, value in weights.items()
    }
    try:
        if image_size is not None:
            state, built = family.resize(state, built, image_size)
        model = _with_weights(family, built, state, train)
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(f"{where}: weights do not fit config.json: {error}") from error
    return model


def _with_weights(family: Family, config: Any, state: State, train: bool) -> nn.Module:
    with torch.device("meta"):
        model = family.build(config)
    model.load_state_dict(state, assign=True)  # what does not fit is told before it is allocated
    if not train and not any(buffer.is_meta for buffer in model.buffers()):
        return model
    model = family.build(config)  # buffers that are not stored are computed
    model.load_state_dict(state)
    return model


def to_model_folder(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Return what a model folder with these weights would hold.

    Args:
        config: The foreign `config.json`.
        tensors: The foreign weights.
        where: What messages name, such as the folder.

    Returns:
        `config.json`, the weights by our names, and `preprocess.json`.

    Raises:
        CheckpointError: The family is not known here, or a tensor is missing or of another shape.
    """
    family = str(config.get("model_type"))
    released = {name: FAMILIES.get(name).released_variant for name in FAMILIES}
    known = {name: variant for name, variant in released.items() if variant is not None}
    if family not in known:
        raise CheckpointError(
            f"{where} is a folder of transformers with a model of type {family!r}; of those, only "
            f"{', '.join(known)} can be used as they are"
        )
    converter, sizes = CONVERTERS.get(family), model_config(known[family])
    with reading(where, CheckpointError):
        if converter.config_from_folder is not None:
            sizes = converter.config_from_folder(config, sizes)
        task = converter.trained_for(tensors)
        sizes = converter.adapt_config(tensors, sizes, image_size=None, trained_for=task)
        sizes = model_config_of(family, to_dict(sizes))
    with torch.device("meta"):
        model = build_model(sizes)
    report = converter.import_state(tensors, model)
    report.require(f"{where} as {FAMILIES.get(family).title}")
    longest = min(converter.max_text_tokens, model_sizes(sizes).max_tokens)
    stored = {
        "model": to_dict(sizes, tagged=True),
        "trained_for": [task],
        "text": {"max_text_tokens": longest, "max_words": converter.max_words},
    }
    preprocess = {
        "image_size": model.image_size,
        "mean": list(converter.mean),
        "std": list(converter.std),
    }
    return stored, dict(model.state_dict()), preprocess
