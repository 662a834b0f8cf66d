"""Folders that transformers writes, read as if they were model folders; models by hub id."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from triptych.checkpoint.adapter import ADAPTER_WEIGHTS
from triptych.checkpoint.foreign import read_foreign
from triptych.checkpoint.model_folder import CONFIG, SUMS, ModelFolder, load_model_folder
from triptych.core.errors import CheckpointError
from triptych.core.extras import import_extra
from triptych.core.reading import read_json_object, reading

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
SETTINGS = ("*.json", "*.txt", SUMS)
SAFE_WEIGHTS = ("model*.safetensors", "head.safetensors", ADAPTER_WEIGHTS)
TORCH_WEIGHTS = ("pytorch_model*.bin",)


def find_folder(name: str | Path) -> Path:
    """Return a local folder: the one of that name, or a snapshot of the model of that hub id.

    A hub id, such as "facebook/flava-full", is looked up with huggingface_hub, which keeps what it
    has fetched. Nothing is fetched where a file or folder of that name exists, and weights for
    `torch.load` only where there are none in safetensors.

    Args:
        name: The folder, or OWNER/NAME, or OWNER/NAME@REVISION for a branch, a tag or a commit.

    Raises:
        CheckpointError: It is a hub id, and huggingface_hub is not installed or cannot reach it.
    """
    folder = Path(name)
    hub_id, _, revision = str(name).partition("@")
    if folder.exists() or not HUB_ID.fullmatch(hub_id):
        return folder
    version = {"revision": revision} if revision else {}
    purpose = f"there is no folder {name}, and to fetch a model of that id from the hub"
    hub = import_extra("huggingface_hub", "hf", purpose)
    try:
        patterns = [*SETTINGS, *SAFE_WEIGHTS]
        found = hub.snapshot_download(hub_id, allow_patterns=patterns, **version)
        if not any(Path(found).glob(SAFE_WEIGHTS[0])):
            patterns = [*SETTINGS, *TORCH_WEIGHTS]
            found = hub.snapshot_download(hub_id, allow_patterns=patterns, **version)
    except Exception as error:  # the hub's own errors, and those of the network below it
        detail = str(error).strip().splitlines() or [""]
        raise CheckpointError(
            f"there is no folder {name}, and the hub gives no model of that id "
            f"({type(error).__name__}: {detail[0][:200]}): check the name and the connection, log "
            "in with `hf auth login` if it is private, or download the model elsewhere and name "
            "its folder"
        ) from error
    return Path(found)


PREPROCESSOR = "preprocessor_config.json"

Stored = tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]
"""`config.json`, weights and `preprocess.json` of a model folder."""

ToModelFolder = Callable[[Mapping[str, Any], Mapping[str, Tensor], str], Stored]
"""From a foreign `config.json`, foreign tensors and what to call them in messages."""


def open_model_folder(name: str | Path, to_model_folder: ToModelFolder) -> ModelFolder:
    """Read a model folder, a folder that transformers wrote, or either from the hub.

    Args:
        name: The folder, or a hub id such as "facebook/flava-full".
        to_model_folder: What a released model is as one of ours; `models` has it.

    Raises:
        CheckpointError: A file is missing or damaged, two of them do not fit together, or the model
            is of a family that is not known here.
    """
    folder = find_folder(name)
    if not _is_released(folder):
        return load_model_folder(folder)
    foreign = read_foreign(folder)
    config, weights, preprocess = to_model_folder(foreign.config, foreign.tensors, str(folder))
    preprocess = with_preprocessor(folder, preprocess)
    return ModelFolder(
        config=config, state_dict=weights, tokenizer_path=folder, preprocess=preprocess, card=""
    )


def _is_released(folder: Path) -> bool:
    try:
        plain = read_json_object(folder / CONFIG, error=CheckpointError)
    except CheckpointError:  # which `load_model_folder` tells
        return False
    return "model_type" in plain and "model" not in plain


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
    plain = read_json_object(path, error=CheckpointError)
    with reading(path, CheckpointError):
        mean = [float(v) for v in plain.get("image_mean") or preprocess["mean"]]
        std = [float(v) for v in plain.get("image_std") or preprocess["std"]]
        size = plain.get("crop_size") or plain.get("size") or own
        side = int(size["height"]) if isinstance(size, dict) else int(size)
    if side != own and not resized:
        raise CheckpointError(
            f"{path} makes images of {side} px but the model takes {own}: the files belong to "
            "different models"
        )
    return preprocess | {"mean": mean, "std": std}
