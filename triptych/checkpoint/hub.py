"""Models by their ids on the hub, through huggingface_hub where that is installed."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from triptych.core.errors import CheckpointError

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
SETTINGS = ("*.json", "*.txt")
SAFE_WEIGHTS = ("model*.safetensors", "head.safetensors")
TORCH_WEIGHTS = ("pytorch_model*.bin",)


def find_folder(name: str | Path) -> Path:
    """Return a local folder: the one of that name, or a snapshot of the model of that hub id.

    A hub id, such as "facebook/flava-full", is looked up with huggingface_hub, which keeps what it
    has fetched. Nothing is fetched where a file or folder of that name exists, and weights for
    `torch.load` only where there are none in safetensors.

    Raises:
        CheckpointError: It is a hub id, and huggingface_hub is not installed or cannot reach it.
    """
    folder = Path(name)
    if folder.exists() or not HUB_ID.fullmatch(str(name)):
        return folder
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise CheckpointError(
            f"there is no folder {name}; to fetch a model of that id from the hub, install "
            "huggingface_hub: pip install huggingface_hub"
        ) from error
    try:
        found = hub.snapshot_download(str(name), allow_patterns=[*SETTINGS, *SAFE_WEIGHTS])
        if not any(Path(found).glob(SAFE_WEIGHTS[0])):
            found = hub.snapshot_download(str(name), allow_patterns=[*SETTINGS, *TORCH_WEIGHTS])
    except Exception as error:  # the hub's own errors, and those of the network below it
        detail = str(error).strip().splitlines() or [""]
        raise CheckpointError(
            f"there is no folder {name}, and the hub gives no model of that id "
            f"({type(error).__name__}: {detail[0][:200]}): check the name and the connection, or "
            "download the model elsewhere and name its folder"
        ) from error
    return Path(found)
