"""Every family of models: how its config becomes a model, and how a stored one is rebuilt.

A new family is one entry of `FAMILIES`; recipes, serving and the command line then know it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from triptych.core.config import from_dict
from triptych.core.errors import CheckpointError, ConfigError, nearest
from triptych.models.dvae import variants as dvae_variants
from triptych.models.dvae.config import DVAEConfig
from triptych.models.dvae.model import DVAE
from triptych.models.flava import variants as flava_variants
from triptych.models.flava.config import FLAVAConfig
from triptych.models.flava.model import FLAVA
from triptych.models.flava.model import resize_model_state as resize_flava
from triptych.models.mplug import variants as mplug_variants
from triptych.models.mplug.config import MPLUGConfig
from triptych.models.mplug.model import MPLUG
from triptych.models.vlmo import variants as vlmo_variants
from triptych.models.vlmo.config import VLMoConfig
from triptych.models.vlmo.convert import resize_model_state
from triptych.models.vlmo.model import VLMo
from triptych.nn.positions import resize_position_table

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Family:
    """A family of models.

    Attributes:
        title: As its paper writes it.
        config_class: Its config; the `kind` of a stored config tells the family.
        build: From a config to a model with fresh weights.
        variants: Registered sizes by name; each takes `image_size` and `vocab_size`.
        resize: From a stored state, its config and a new side in pixels to both at that size.
        reads_text: False for image tokenizers, which know images alone.
    """

    title: str
    config_class: type[Any]
    build: Callable[[Any], nn.Module]
    variants: Mapping[str, Callable[..., Any]]
    resize: Callable[[State, Any, int], tuple[State, Any]]
    reads_text: bool = True


def _resize_mplug(state: State, config: MPLUGConfig, image_size: int) -> tuple[State, MPLUGConfig]:
    resized = replace(config, vision=replace(config.vision, image_size=image_size))
    name = "visual_encoder.position_embedding"
    table = resize_position_table(state[name], resized.vision.num_patches)
    return {**state, name: table}, resized


def _resize_dvae(state: State, config: DVAEConfig, image_size: int) -> tuple[State, DVAEConfig]:
    return state, replace(config, image_size=image_size)  # convolutions fit every size


FAMILIES: dict[str, Family] = {
    "mplug": Family("mPLUG", MPLUGConfig, MPLUG, mplug_variants.VARIANTS, _resize_mplug),
    "flava": Family("FLAVA", FLAVAConfig, FLAVA, flava_variants.VARIANTS, resize_flava),
    "vlmo": Family("VLMo", VLMoConfig, VLMo, vlmo_variants.VARIANTS, resize_model_state),
    "dvae": Family(
        "dVAE", DVAEConfig, DVAE, dvae_variants.VARIANTS, _resize_dvae, reads_text=False
    ),
}
"""By the `kind` of the config class."""


def family_of(config: Any) -> Family:
    """Return the family that a config belongs to."""
    for family in FAMILIES.values():
        if isinstance(config, family.config_class):
            return family
    raise ConfigError(f"{type(config).__name__} is the config of no family ({', '.join(FAMILIES)})")


@dataclass(frozen=True, slots=True)
class TextSizes:
    """What a model's text side can take.

    Attributes:
        vocab_size: Words V.
        max_tokens: Longest text, [CLS] and [SEP] counted.
    """

    vocab_size: int
    max_tokens: int


def text_sizes(config: Any) -> TextSizes:
    """Return the text sizes of a model config of any family that reads text."""
    if isinstance(config, VLMoConfig):
        return TextSizes(config.vocab_size, config.max_text_tokens)
    return TextSizes(config.text.vocab_size, config.text.max_positions)


def vocabulary_size(config: Any) -> int:
    """Return how many words a model of any family knows; how many codes an image tokenizer."""
    return config.num_codes if isinstance(config, DVAEConfig) else text_sizes(config).vocab_size


def patch_size(config: Any) -> int:
    """Return the side of a patch in pixels of a model config of any family."""
    sizes = config if isinstance(config, VLMoConfig) else config.vision
    return int(sizes.patch_size)


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
        train: Copies the weights, so that tied parameters stay one; else the model takes the given
            tensors as they are, and nothing is drawn or copied.

    Raises:
        CheckpointError: An unknown kind, a bad config, or weights that do not fit it.
    """
    kind = config.get("kind")
    if kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        clue = nearest(str(kind), FAMILIES)
        raise CheckpointError(f"{where}: unknown model kind {kind!r}{clue} (known: {known})")
    family = FAMILIES[kind]
    plain = {name: value for name, value in config.items() if name != "kind"}
    try:
        built = from_dict(family.config_class, plain, "model")
    except ConfigError as error:
        raise CheckpointError(f"{where} cannot be loaded: {error}") from error
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
    if not train:
        with torch.device("meta"):
            model = family.build(config)
        model.load_state_dict(state, assign=True)
        if not any(buffer.is_meta for buffer in model.buffers()):
            return model
    model = family.build(config)  # buffers that are not stored are computed
    model.load_state_dict(state)
    return model
