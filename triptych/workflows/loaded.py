"""A model folder, ready to be scored on any task that it can do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from triptych.checkpoint.model_folder import stored_config
from triptych.checkpoint.released import open_model_folder
from triptych.core.config import from_dict
from triptych.core.errors import CapabilityError, CheckpointError
from triptych.data.collate import PretrainingTextConfig
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.models.base import require_decoder
from triptych.models.families import restore_model, to_model_folder
from triptych.tasks.registry import (
    build_task,
    evaluated_configs,
    needed_capabilities,
    recipe_that_teaches,
    stored_task_config,
    teaching_words,
)
from triptych.tasks.spec import TaskConfig, TextLengths
from triptych.text import Tokenizer
from triptych.train.task import Task


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model folder, ready to predict.

    Attributes:
        model: The model, on the CPU or a GPU.
        tokenizer: Its tokenizer.
        image: How its images are prepared.
        config: The folder's `config.json`.
        head: Weights of its classifier; empty if it has none.
        folder: Where it was read from.
    """

    model: Any
    tokenizer: Tokenizer
    image: ImageTransformConfig
    config: dict[str, object]
    head: dict[str, Tensor]
    folder: Path

    def task_config(self, task: str) -> TaskConfig:
        """Return the stored settings of a task, or its defaults where it was trained for more."""
        known = evaluated_configs(task)
        stored = stored_task_config(self.config.get("task"))
        return stored if stored is not None and type(stored) in known else known[0]()

    def build_task(self, task: str) -> Task:
        """Bind the model, and its classifier if the task has one.

        Raises:
            CheckpointError: The folder's classifier does not fit its settings, or is missing.
        """
        bound = build_task(self.task_config(task), self.model, self.tokenizer)
        if "head" in bound.modules:
            try:
                bound.modules["head"].load_state_dict(self.head)
            except RuntimeError as error:
                raise CheckpointError(
                    f"{self.folder}: head.safetensors does not fit config.json: {error}"
                ) from error
        return bound

    def captions(self) -> PretrainingTextConfig:
        """Return the caption lengths that the model was trained with; the usual ones if absent."""
        return from_dict(PretrainingTextConfig, self._text("max_text_tokens", "max_words"), "text")

    def lengths(self) -> TextLengths:
        """Return the other texts' lengths that it was trained with; the usual ones if absent."""
        return from_dict(TextLengths, self._text("question", "answer", "phrase"), "text")

    def check_trained(self, task: str) -> None:
        """Raise a CapabilityError unless the model was trained for a task."""
        if "decode" in needed_capabilities(task):
            require_decoder(self.model, f"do {task}")
        trained = self.config.get("trained_for")
        words = trained if isinstance(trained, list) else []
        if set(teaching_words(task)) & set(words):
            return
        message = (
            f"{self.folder} was trained for {', '.join(map(str, words)) or 'nothing known'}, not "
            f"for {task}"
        )
        recipe = recipe_that_teaches(task, self.model)
        if recipe is None:
            raise CapabilityError(f"{message}, and no recipe teaches it to models of this family")
        raise CapabilityError(
            f"{message}: fine-tune it with `triptych train {recipe} --init-from {self.folder} "
            "--data PATH`"
        )

    def _text(self, *names: str) -> dict[str, object]:
        text = self.config.get("text")
        return {n: text[n] for n in names if n in text} if isinstance(text, dict) else {}


def load_for_evaluation(folder: Path) -> LoadedModel:
    """Load a model folder, a folder that transformers wrote, or either by its hub id.

    Raises:
        CheckpointError: It is incomplete or damaged.
    """
    stored = open_model_folder(folder, to_model_folder)
    plain = stored_config(stored.config, folder)
    return LoadedModel(
        restore_model(plain, stored.state_dict, str(folder), train=True),
        Tokenizer.load(stored.tokenizer_path),
        from_dict(ImageTransformConfig, stored.preprocess, "preprocess"),
        stored.config,
        stored.head,
        folder,
    )
