"""One way to load a model folder: to serve, evaluate, probe or fine-tune it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from triptych.checkpoint.model_folder import stored_config
from triptych.checkpoint.released import find_folder, open_model_folder
from triptych.core.config import check, from_dict, kind_of, kinds_of
from triptych.core.errors import CapabilityError, CheckpointError, ConfigError, DataError
from triptych.core.reading import reading
from triptych.data.caption_cleaning import MAX_WORDS
from triptych.data.collate import AnyCollator, PretrainingTextConfig
from triptych.data.records import Record
from triptych.data.skips import SkipLog
from triptych.data.stream import BatchLoader, build_loader
from triptych.data.transforms.pipeline import ImageTransform, ImageTransformConfig
from triptych.models.families import model_sizes, restore_model, to_model_folder
from triptych.nn.prepacked import round_linear_weights
from triptych.tasks.registry import (
    TASKS,
    build_task,
    evaluated_configs,
    models_to_take,
    needed_capabilities,
    recipe_that_teaches,
    stored_task_config,
    teaching_words,
)
from triptych.tasks.spec import TaskConfig, TextLengths
from triptych.text import Tokenizer
from triptych.train.precision import Precision, autocast, explain_precision, resolve_precision
from triptych.train.task import Task

C = TypeVar("C")

MAX_LENGTH = 1_000_000
"""Of a text, in tokens or words."""

PRECISIONS = ("auto", "bf16", "fp32")
"""Of a forward pass; training has others."""


def find_device(name: str) -> torch.device:
    """Return the device to compute on.

    Args:
        name: "cpu", "cuda", "cuda:1" and so on; "auto" takes a GPU where there is one.

    Raises:
        ConfigError: There is no such device here.
    """
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device = {name!r}: must be auto, cpu or cuda") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device = {name!r}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs "
            "here; take 'auto' or 'cpu'"
        )
    return device


@dataclass(frozen=True, slots=True)
class TextLimits:
    """Longest texts, in tokens with [CLS] and [SEP] counted; what is longer is cut off.

    Attributes:
        caption: Of captions and texts to match or to embed.
        question: Of questions.
        answer: Of answers.
        phrase: Of phrases to ground.
        max_words: Words of a caption that are kept; None leaves captions as they are.
    """

    caption: int = 40
    question: int = 25
    answer: int = 12
    phrase: int = 20
    max_words: int | None = MAX_WORDS

    def __post_init__(self) -> None:
        """Reject lengths that no text has."""
        for name in ("caption", "question", "answer", "phrase", "max_words"):
            value = getattr(self, name)
            fits = value is None or 1 <= value <= MAX_LENGTH
            check(fits, name, value, f"be from 1 to {MAX_LENGTH:,}")


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
    """The content of a model folder, built and checked.

    Attributes:
        model: The model, in fp32 on `device`; see `load_model` for weights that are rounded.
        tokenizer: Its tokenizer.
        image: How its images are prepared.
        settings: What it was trained for, and its longest texts.
        head: Weights of its classifier; empty if it has none.
        folder: Where it was read from.
        device: Where it computes.
        precision: Of the forward pass.
        precision_reason: Why it is that, in words.
    """

    model: Any
    tokenizer: Tokenizer
    image: ImageTransformConfig
    settings: ServingSettings
    head: Mapping[str, Tensor]
    folder: Path
    device: torch.device
    precision: Precision
    precision_reason: str

    def described(self) -> str:
        """Return where it computes, in which precision, and why in that."""
        return f"{self.device} in {self.precision}; {self.precision} {self.precision_reason}"

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context for a forward pass in the chosen precision."""
        return autocast(self.device, self.precision)

    def task_config(self, task: str) -> TaskConfig:
        """Return the stored settings of an evaluated task; its defaults if it stores others.

        Of several tasks, these are the defaults of the first that fits the model.
        """
        known = evaluated_configs(task)
        stored = stored_task_config(self.settings.task)
        if stored is not None and type(stored) in known:
            return stored
        fitting = (c for c in known if TASKS[kind_of(c)].models.accept(self.model))
        return next(fitting, known[0])()

    def build_task(self, task: str) -> Task:
        """Bind the model, and its classifier if the task has one.

        Raises:
            CheckpointError: The folder's classifier does not fit its settings, or is missing.
        """
        return self.bind(self.task_config(task))

    def bind(self, config: TaskConfig) -> Task:
        """Bind the model, and its classifier if the task has one, to a task of these settings.

        Raises:
            CheckpointError: The folder's classifier does not fit its settings, or is missing.
        """
        bound = build_task(config, self.model, self.tokenizer)
        if "head" in bound.modules:
            try:
                bound.modules["head"].load_state_dict(dict(self.head))
            except RuntimeError as error:
                raise CheckpointError(
                    f"{self.folder}: head.safetensors does not fit config.json: {error}"
                ) from error
        return bound

    def captions(self) -> PretrainingTextConfig:
        """Return how captions are prepared: as in training."""
        limits = self.settings.limits
        return PretrainingTextConfig(max_text_tokens=limits.caption, max_words=limits.max_words)

    def lengths(self) -> TextLengths:
        """Return the longest other texts: as in training."""
        limits = self.settings.limits
        return TextLengths(question=limits.question, answer=limits.answer, phrase=limits.phrase)

    def loader(
        self,
        records: Sequence[Record],
        collator: AnyCollator[Any],
        local_batch_size: int,
        skip_log: SkipLog | None = None,
        *,
        num_workers: int = 0,
    ) -> BatchLoader:
        """Return each record once, with its images as the model takes them.

        Args:
            records: What to read.
            collator: Makes batches from them.
            local_batch_size: Records in a batch.
            skip_log: Is told of what cannot be read.
            num_workers: Processes that prepare batches; 0 prepares them in this one.
        """
        image = replace(self.image, image_size=self.model.image_size)
        return build_loader(
            records,
            collator,
            ImageTransform(image, train=False),
            seed=0,
            local_batch_size=local_batch_size,
            train=False,
            num_workers=num_workers,
            skip_log=skip_log,
        )

    def check_trained(self, asked: str) -> None:
        """Raise a CapabilityError unless the model was trained for what it is asked to do.

        Args:
            asked: A method of `Engine` or an evaluated task.
        """
        check_trained(asked, self.model, self.settings.trained_for, self.folder)


def check_trained(asked: str, model: Any, trained_for: Sequence[str], folder: Path) -> None:
    """Raise a CapabilityError unless a model can do what it is asked.

    Args:
        asked: A method of `Engine` or an evaluated task.
        model: The model; its family decides which recipe the message names.
        trained_for: Words of the model folder.
        folder: What the message names.
    """
    if "decode" in needed_capabilities(asked) - model.capabilities:
        raise CapabilityError(
            f"{type(model).__name__} has no decoder, so that it cannot {asked}: "
            f"{models_to_take(asked)}"
        )
    if set(teaching_words(asked)) & set(trained_for):
        return
    trained = " and ".join(trained_for) or "nothing"
    message = f"{folder} was trained for {trained}, which does not teach `{asked}`."
    recipe = recipe_that_teaches(asked, model)
    if recipe is None:
        raise CapabilityError(f"{message} No recipe teaches it to models of this family")
    raise CapabilityError(
        f"{message} Train it: triptych train {recipe} --data YOUR_DATA.jsonl --init-from {folder}"
    )


def load_model(
    folder: str | Path,
    *,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    train: bool = False,
    rounded: bool = False,
    image_size: int | None = None,
) -> LoadedModel:
    """Build what a model folder holds, and check its files against each other.

    Args:
        folder: A model folder, one that transformers writes for a family that is known here, or
            the hub id of either.
        device: As `find_device` reads it.
        precision: Of the forward pass; "auto" is what the device has instructions for.
        train: Return weights that can be trained, tied ones as one.
        rounded: Where it computes in bf16, keep the weights of linear layers in bf16. Such a model
            is for use in `LoadedModel.autocast` alone; it takes less memory and time.
        image_size: Another side of the input in pixels, to which position tables are resized.

    Raises:
        CheckpointError: A file is missing or damaged, or two of them do not fit together.
        ConfigError: There is no such device, or no such precision.
    """
    check(precision in PRECISIONS, "precision", precision, f"be one of {', '.join(PRECISIONS)}")
    folder = find_folder(folder)
    content = open_model_folder(folder, to_model_folder)
    if content.config.get("text", {}) is None:
        raise CheckpointError(
            f"{folder} holds an image tokenizer, which answers no question: name it as "
            "task.image_tokenizer of a run, or to `triptych data tokenize-images`"
        )
    with reading(folder, CheckpointError):
        try:
            preprocess = from_dict(ImageTransformConfig, content.preprocess)
            settings = read_settings(content.config)
            tokenizer = Tokenizer.load(content.tokenizer_path)
        except (ConfigError, DataError) as error:
            raise CheckpointError(f"{folder} cannot be loaded: {error}") from error
    model = restore_model(
        stored_config(content.config, folder),
        content.state_dict,
        str(folder),
        image_size=image_size,
        train=train,
    )
    vocab_size = model_sizes(model.config).vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"{folder}: its vocabulary has {tokenizer.vocab_size} tokens but the model knows "
            f"{vocab_size}: the files belong to different models"
        )
    if image_size is None and preprocess.image_size != model.image_size:
        raise CheckpointError(
            f"{folder}: preprocess.json makes images of {preprocess.image_size} px but the model "
            f"takes {model.image_size}: the files belong to different models"
        )
    chosen = find_device(device)
    taken = resolve_precision(precision, chosen)
    model = model.to(chosen)
    if not train:
        model.requires_grad_(False)
    if rounded and taken == "bf16":
        round_linear_weights(model, torch.bfloat16)
    return LoadedModel(
        model,
        tokenizer,
        preprocess,
        settings,
        content.head,
        folder,
        chosen,
        taken,
        explain_precision(precision, taken, chosen),
    )


def read_settings(config: Mapping[str, Any]) -> ServingSettings:
    """Return what a model folder's `config.json` says beside the model's sizes."""
    text = config.get("text") or {}
    names = {"max_text_tokens": "caption"} | {n: n for n in ("question", "answer", "phrase")}
    found = {ours: text[name] for name, ours in names.items() if name in text}
    if "max_words" in text:
        found["max_words"] = text["max_words"]
    limits = from_dict(TextLimits, found, "text")
    trained_for, task = config.get("trained_for") or [], config.get("task") or {}
    if not isinstance(trained_for, list) or not isinstance(task, dict):
        raise ConfigError("config.json: `trained_for` must be a list, and `task` a mapping")
    return ServingSettings(tuple(map(str, trained_for)), task, limits)
