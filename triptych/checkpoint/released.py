"""Folders that transformers writes, read as if they were model folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from triptych.checkpoint.foreign import read_foreign
from triptych.checkpoint.hub import find_folder
from triptych.checkpoint.model_folder import CONFIG, ModelFolder, load_model_folder
from triptych.core.errors import CheckpointError

PREPROCESSOR = "preprocessor_config.json"

Stored = tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]
"""`config.json`, weights and `preprocess.json` of a model folder."""

Restate = Callable[[Mapping[str, Any], Mapping[str, Tensor], str], Stored]
"""From a foreign `config.json`, foreign tensors and what to call them in messages."""


def open_model_folder(name: str | Path, restate: Restate) -> ModelFolder:
    """Read a model folder, a folder that transformers wrote, or either from the hub.

    Args:
        name: The folder, or a hub id such as "facebook/flava-full".
        restate: What a released model is as one of ours; `models` has it.

    Raises:
        CheckpointError: A file is missing or damaged, two of them do not fit together, or the model
            is of a family that is not known here.
    """
    folder = find_folder(name)
    if not _is_released(folder):
        return load_model_folder(folder)
    foreign = read_foreign(folder)
    config, weights, preprocess = restate(foreign.config, foreign.tensors, str(folder))
    preprocess = with_preprocessor(folder, preprocess)
    return ModelFolder(
        config=config, state_dict=weights, tokenizer_path=folder, preprocess=preprocess, card=""
    )


def _is_released(folder: Path) -> bool:
    try:
        plain = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(plain, dict) and "model_type" in plain and "model" not in plain


def with_preprocessor(
    folder: Path, preprocess: dict[str, Any], *, resized: bool = False
) -> dict[str, Any]:
    """Take mean and deviation from `preprocessor_config.json`, and check the rest.

    Args:
        folder: That transformers wrote.
        preprocess: `image_size`, `mean` and `std` of the model, which stay where the file or what
            it says is missing.
        resized: Whether the model was given another image size than the folder's.

    Raises:
        CheckpointError: Images would be prepared for another model.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        return preprocess
    own = preprocess["image_size"]
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        mean = [float(v) for v in plain.get("image_mean") or preprocess["mean"]]
        std = [float(v) for v in plain.get("image_std") or preprocess["std"]]
        size = plain.get("crop_size") or plain.get("size") or own
        side = int(size["height"]) if isinstance(size, dict) else int(size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__} {error}") from error
    if side != own and not resized:
        raise CheckpointError(
            f"{path} makes images of {side} px but the model takes {own}: the files belong to "
            "different models"
        )
    return preprocess | {"mean": mean, "std": std}
