"""From a model folder to a network, its words and its settings, each checked against the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from triptych.checkpoint.model_folder import stored_config
from triptych.checkpoint.released import open_model_folder
from triptych.core.config import from_dict, kinds_of
from triptych.core.errors import CheckpointError, ConfigError, DataError
from triptych.data.caption_cleaning import MAX_WORDS
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.models.families import model_sizes, restore_model, to_model_folder
from triptych.text import Tokenizer

C = TypeVar("C")


def find_device(name: str) -> torch.device:
    """Return where to compute.

    Args:
        name: "cpu", "cuda", "cuda:1" and so on; "auto" takes a GPU where there is one.

    Raises:
        ConfigError: There is no such device here.
    """
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    try:
        place = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device = {name!r}: must be auto, cpu or cuda") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device = {name!r}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs "
            "here; take 'auto' or 'cpu'"
        )
    return place


@dataclass(frozen=True, slots=True)
class TextLimits:
    """Longest texts, in tokens with [CLS] and [SEP] counted; what is longer is cut off.

    Attributes:
        caption: Of captions and texts to match or to embed.
        question: Of questions.
        phrase: Of phrases to ground.
        max_words: Words of a caption that are kept; None leaves captions as they are.
    """

    caption: int = 40
    question: int = 25
    phrase: int = 20
    max_words: int | None = MAX_WORDS


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """What `config.json` says beside the model's sizes.

    Attributes:
        trained_for: Out of "pretraining", "captioning", "retrieval", "vqa", "grounding".
        task: Settings of the task that was trained last; `kind` says which.
        limits: Longest texts.
    """

    trained_for: tuple[str, ...]
    task: Mapping[str, Any] = field(default_factory=dict)
    limits: TextLimits = field(default_factory=TextLimits)

    def task_config(self, config_class: type[C]) -> C:
        """Return the stored settings of a task, or its defaults where another was trained last."""
        if self.task.get("kind") not in kinds_of(config_class):
            return config_class()
        plain = {name: value for name, value in self.task.items() if name != "kind"}
        return from_dict(config_class, plain, "task")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The content of a model folder, built; `head` holds the weights of its classifier."""

    model: Any
    tokenizer: Tokenizer
    preprocess: ImageTransformConfig
    settings: ServingSettings
    head: Mapping[str, Tensor] = field(default_factory=dict)


def read_model(folder: Path) -> LoadedModel:
    """Build what a model folder holds, on the CPU and in fp32.

    Args:
        folder: A model folder, or one that transformers writes for a family that is known here.

    Raises:
        CheckpointError: A file is missing or damaged, or two of them do not fit together.
    """
    content = open_model_folder(folder, to_model_folder)
    if content.config.get("text", {}) is None:
        raise CheckpointError(
            f"{folder} holds an image tokenizer, which answers no question: name it as "
            "task.image_tokenizer of a run, or to `triptych data tokenize-images`"
        )
    try:
        preprocess = from_dict(ImageTransformConfig, content.preprocess)
        settings = _settings(content.config)
        tokenizer = Tokenizer.load(content.tokenizer_path)
    except (ConfigError, DataError) as error:
        raise CheckpointError(f"{folder} cannot be loaded: {error}") from error
    model = restore_model(
        stored_config(content.config, folder), content.state_dict, str(folder)
    ).requires_grad_(False)
    vocab_size = model_sizes(model.config).vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"{folder}: its vocabulary has {tokenizer.vocab_size} tokens but the model knows "
            f"{vocab_size}: the files belong to different models"
        )
    if preprocess.image_size != model.image_size:
        raise CheckpointError(
            f"{folder}: preprocess.json makes images of {preprocess.image_size} px but the model "
            f"takes {model.image_size}: the files belong to different models"
        )
    return LoadedModel(model, tokenizer, preprocess, settings, content.head)


def _settings(config: Mapping[str, Any]) -> ServingSettings:
    text = config.get("text") or {}
    default = TextLimits()
    limits = TextLimits(
        caption=int(text.get("max_text_tokens", default.caption)),
        question=int(text.get("question", default.question)),
        phrase=int(text.get("phrase", default.phrase)),
        max_words=_number_or_none(text.get("max_words", default.max_words)),
    )
    trained_for = tuple(str(task) for task in config.get("trained_for") or ())
    return ServingSettings(trained_for, config.get("task") or {}, limits)


def _number_or_none(value: Any) -> int | None:
    return None if value is None else int(value)
