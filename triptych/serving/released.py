"""Folders that transformers writes, used as they are: `triptych.load("path/to/flava-full")`."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from triptych.checkpoint.foreign import read_foreign
from triptych.core.errors import CheckpointError, DataError
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.models.converters import CONVERTERS
from triptych.models.families import FAMILIES, text_sizes
from triptych.models.registry import build_model, model_config
from triptych.text import Tokenizer

VARIANTS = {"flava": "flava_full"}
"""By `model_type` of the folder's `config.json`: the family's variant whose sizes it changes."""

PREPROCESSOR = "preprocessor_config.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ("*.json", "*.txt", "model*.safetensors", "pytorch_model*.bin")


def is_released_folder(folder: Path) -> bool:
    """Return whether a folder is one of transformers, of a family that is known here."""
    return _model_type(folder) in VARIANTS


def read_released(folder: Path) -> tuple[Any, Tokenizer, ImageTransformConfig]:
    """Build the model of a transformers folder, on the CPU and in fp32.

    Args:
        folder: With `config.json`, weights in safetensors or .bin, whole or in shards, the
            vocabulary, and perhaps `preprocessor_config.json`.

    Returns:
        The model, its tokenizer, and how pictures are prepared.

    Raises:
        CheckpointError: A file is missing or damaged, or two of them do not fit together.
    """
    family = _model_type(folder)
    assert family is not None
    converter, foreign = CONVERTERS.get(family), read_foreign(folder)
    config = model_config(VARIANTS[family])
    if converter.config_from_folder is not None:
        config = converter.config_from_folder(foreign.config, config)
    task = converter.trained_for(foreign.tensors)
    config = converter.adapt_config(foreign.tensors, config, image_size=None, trained_for=task)
    with torch.device("meta"):
        model = build_model(config)
    report = converter.import_state(foreign.tensors, model)
    report.require(f"{folder} as {FAMILIES[family].title}")
    try:
        tokenizer = Tokenizer.load(folder)
    except DataError as error:
        raise CheckpointError(f"{folder} cannot be loaded: {error}") from error
    vocab_size = text_sizes(config).vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"{folder}: its vocabulary has {tokenizer.vocab_size} tokens but the model knows "
            f"{vocab_size}: the files belong to different models"
        )
    preprocess = ImageTransformConfig(
        image_size=model.image_size, mean=converter.mean, std=converter.std
    )
    return model.float(), tokenizer, _with_preprocessor(folder, preprocess)


def find_folder(name: str | Path) -> Path:
    """Return a local folder: the one of that name, or a snapshot of the model of that hub id.

    A hub id, such as "facebook/flava-full", is looked up with huggingface_hub, which keeps what it
    has fetched. Nothing is fetched where a folder of that name exists.

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
        return Path(hub.snapshot_download(str(name), allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the hub's own errors, and those of the network below it
        detail = str(error).strip().splitlines() or [""]
        raise CheckpointError(
            f"there is no folder {name}, and the hub gives no model of that id "
            f"({type(error).__name__}: {detail[0][:200]}): check the name and the connection, or "
            "download the model elsewhere and name its folder"
        ) from error


def _model_type(folder: Path) -> str | None:
    try:
        plain = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return plain.get("model_type") if isinstance(plain, dict) else None


def _with_preprocessor(folder: Path, preprocess: ImageTransformConfig) -> ImageTransformConfig:
    """Take mean and deviation from `preprocessor_config.json`, and check the rest.

    Raises:
        CheckpointError: Pictures would be prepared for another model.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        return preprocess
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        mean = tuple(float(v) for v in plain.get("image_mean") or preprocess.mean)
        std = tuple(float(v) for v in plain.get("image_std") or preprocess.std)
        size = plain.get("crop_size") or plain.get("size") or preprocess.image_size
        side = int(size["height"]) if isinstance(size, dict) else int(size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__} {error}") from error
    if side != preprocess.image_size:
        raise CheckpointError(
            f"{path} makes pictures of {side} px but the model takes {preprocess.image_size}: the "
            "files belong to different models"
        )
    return replace(preprocess, mean=mean, std=std)  # type: ignore[arg-type]
