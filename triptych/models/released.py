"""What a released model of transformers is as a model folder of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from triptych.core.config import to_dict
from triptych.core.errors import CheckpointError
from triptych.models.families import (
    CONVERTERS,
    FAMILIES,
    build_model,
    model_config,
    model_sizes,
)


def restate(
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
    if converter.config_from_folder is not None:
        sizes = converter.config_from_folder(config, sizes)
    task = converter.trained_for(tensors)
    sizes = converter.adapt_config(tensors, sizes, image_size=None, trained_for=task)
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
