"""DALL-E's encoder and decoder as OpenAI publishes them: pickled modules, read without their code.

`encoder.pkl` and `decoder.pkl` name classes of the `dall_e` package. Here inert objects stand for
these classes, so nothing of the file runs; every other class is refused, as torch does.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.core.errors import CheckpointError


class _Inert:
    """Takes the place of a module; its state is kept as plain attributes."""


_CLASSES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.decoder.Decoder",
    "dall_e.decoder.DecoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.upsampling.Upsample",
)


def read_dalle_module(path: Path) -> dict[str, Tensor]:
    """Return the parameters of a pickled DALL-E encoder or decoder, by name.

    Raises:
        CheckpointError: The file is missing, damaged, or names other classes.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    stubs = {name: type(name.rpartition(".")[2], (_Inert,), {}) for name in _CLASSES}
    try:
        with torch.serialization.safe_globals([(stub, name) for name, stub in stubs.items()]):
            module = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged, or no encoder or decoder of DALL-E: {str(error)[:200]}"
        ) from error
    found = dict(_parameters(module, ""))
    if not found:
        raise CheckpointError(f"{path} holds no parameters: expected a module of DALL-E's")
    return found


def _parameters(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    state = getattr(module, "__dict__", {})
    for name, parameter in (state.get("_parameters") or {}).items():
        if isinstance(parameter, Tensor):
            yield f"{prefix}{name}", parameter.detach()
    for name, child in (state.get("_modules") or {}).items():
        yield from _parameters(child, f"{prefix}{name}.")
