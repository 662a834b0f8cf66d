"""A model folder, ready to be scored on any task that it can do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from triptych.checkpoint.model_folder import stored_config
from triptych.checkpoint.released import open_model_folder
from triptych.core.config import from_dict, kind_of, kinds_of
from triptych.core.errors import CapabilityError, CheckpointError
from triptych.data.collate import PretrainingTextConfig
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.models.base import require_decoder
from triptych.models.families import restore_model
from triptych.models.released import restate
from triptych.recipes.config import TaskConfig, TextLengths
from triptych.recipes.registry import RECIPES as KNOWN_RECIPES
from triptych.tasks.finetuning.captioning import CaptioningConfig
from triptych.tasks.finetuning.grounding import GroundingConfig
from triptych.tasks.finetuning.image_text_classification import (
    AnswerClassificationConfig,
    ImageTextClassificationConfig,
)
from triptych.tasks.finetuning.nlvr2 import NLVR2Config
from triptych.tasks.finetuning.retrieval import RetrievalConfig, VLMoRetrievalConfig
from triptych.tasks.finetuning.text_classification import TextClassificationConfig
from triptych.tasks.finetuning.vqa import VQAConfig
from triptych.text import Tokenizer
from triptych.train.task import Task
from triptych.workflows.kinds import build_task

CONFIGS: dict[str, tuple[type[TaskConfig], ...]] = {
    "caption": (CaptioningConfig,),
    "retrieval": (RetrievalConfig, VLMoRetrievalConfig),
    "vqa": (VQAConfig, AnswerClassificationConfig),
    "grounding": (GroundingConfig,),
    "nlvr2": (NLVR2Config,),
    "snli_ve": (ImageTextClassificationConfig,),
    "classification": (ImageTextClassificationConfig, TextClassificationConfig),
}
"""What a folder may have been trained for last, by the task that is scored; the usual one first."""

TRAINED: dict[str, set[str]] = {
    "caption": {"pretraining", "captioning"},
    "retrieval": {"pretraining", "retrieval"},
    "vqa": {"vqa", "answer_classification"},
    "grounding": {"grounding"},
    "nlvr2": {"nlvr2"},
    "snli_ve": {"image_text_classification"},
    "classification": {"image_text_classification", "text_classification"},
    "zero_shot": {"pretraining", "retrieval"},
}
"""Words in `trained_for`, one of which a task needs."""

RECIPES = {
    "classification": "classify.pairs",
    "zero_shot": "mplug.retrieval",
}
"""What teaches a task, where it is not `mplug.TASK`."""


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
        stored = self.config.get("task")
        if isinstance(stored, dict):
            for config_class in CONFIGS[task]:
                if stored.get("kind") in kinds_of(config_class):
                    plain = {name: value for name, value in stored.items() if name != "kind"}
                    return from_dict(config_class, plain, "task")
        return CONFIGS[task][0]()

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
        if task in ("caption", "grounding"):
            require_decoder(self.model, f"do {task}")
        trained = self.config.get("trained_for")
        words = trained if isinstance(trained, list) else []
        if not TRAINED[task] & set(words):
            recipe = RECIPES.get(task, f"mplug.{task}")
            own = f"{kind_of(type(self.model.config))}.{task}"
            recipe = own if own in KNOWN_RECIPES else recipe
            raise CapabilityError(
                f"{self.folder} was trained for {', '.join(map(str, words)) or 'nothing known'}, "
                f"not for {task}: fine-tune it with `triptych train {recipe} --init-from "
                f"{self.folder} --data PATH`"
            )

    def _text(self, *names: str) -> dict[str, object]:
        text = self.config.get("text")
        return {n: text[n] for n in names if n in text} if isinstance(text, dict) else {}


def load_for_evaluation(folder: Path) -> LoadedModel:
    """Load a model folder, a folder that transformers wrote, or either by its hub id.

    Raises:
        CheckpointError: It is incomplete or damaged.
    """
    stored = open_model_folder(folder, restate)
    plain = stored_config(stored.config, folder)
    return LoadedModel(
        restore_model(plain, stored.state_dict, str(folder), train=True),
        Tokenizer.load(stored.tokenizer_path),
        from_dict(ImageTransformConfig, stored.preprocess, "preprocess"),
        stored.config,
        stored.head,
        folder,
    )
