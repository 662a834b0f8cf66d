"""The classifier of a model folder, and classes that have nothing but a name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.core.errors import CapabilityError, DataError
from triptych.core.outputs import Predictions
from triptych.data.entries import ENTAILMENT_LABELS
from triptych.evaluation.zero_shot import PLACEHOLDER, class_embeddings, class_words, prompts
from triptych.serving.loading import LoadedModel
from triptych.tasks.finetuning.base import ModelTask
from triptych.tasks.finetuning.image_classification import ImageClassification
from triptych.tasks.finetuning.image_text_classification import (
    AnswerClassification,
    ImageTextClassification,
)
from triptych.tasks.finetuning.text_classification import TextClassification
from triptych.tasks.registry import stored_task_config, task_spec

SEEN_WORDS = ("ocr_words", "object_words")


def build_classifier(loaded: LoadedModel) -> ModelTask[Any] | None:
    """Return the classifier that a folder's settings describe; None if they are of another task.

    Raises:
        CheckpointError: The weights are missing or do not fit.
    """
    config = stored_task_config(loaded.settings.task)
    if config is None or not task_spec(config).has_classifier:
        return None
    task = cast(ModelTask[Any], loaded.bind(config))
    task.modules["head"].requires_grad_(False).eval()
    return task


def check_entailment(task: ModelTask[Any] | None, with_premise: bool, folder: Path) -> None:
    """Reject a classifier of other classes, and premises for one that was not taught to read any.

    Raises:
        CapabilityError: Either.
    """
    assert isinstance(task, ImageTextClassification)
    if set(task.config.labels) != set(ENTAILMENT_LABELS):
        raise CapabilityError(
            f"{folder} was trained for the classes {', '.join(task.config.labels)}, which does not "
            f"teach `entail`: triptych train mplug.snli_ve --data YOUR_DATA.jsonl --init-from "
            f"{folder}"
        )
    if with_premise and not task.config.with_premise:
        raise CapabilityError(
            f"{folder} was trained on images and hypotheses alone: leave premises out, or train "
            "it with --task.with-premise"
        )


def reads_text(classifier: ModelTask[Any] | None, text: str) -> bool:
    """Return whether a model takes an optional text of an item.

    Args:
        classifier: The model's, if it has one.
        text: "premise", "ocr_words" or "object_words"; others are always taken.
    """
    if text == "premise":
        return isinstance(classifier, ImageTextClassification) and classifier.config.with_premise
    return text not in SEEN_WORDS or not isinstance(classifier, AnswerClassification)


def check_names(labels: Sequence[str], templates: Sequence[str]) -> None:
    """Reject names that cannot be told apart, and sentences without a place for them.

    Raises:
        DataError: Fewer than two names, a name that is empty or given twice, or a bad sentence.
    """
    words = [class_words(label) for label in labels]
    if len(words) < 2:
        raise DataError(f"{len(words)} label: give two or more to choose from")
    for label, word in zip(labels, words, strict=True):
        if not word:
            raise DataError(f"label {label!r} is empty: say it in words")
        if words.count(word) > 1:
            raise DataError(f"label {label!r} is given twice")
    for template in templates:
        if template.count(PLACEHOLDER) != 1:
            raise DataError(f"template {template!r} must hold {PLACEHOLDER} once")
    if not templates:
        raise DataError("give at least one template, such as 'a photo of {}'")


def embed_classes(
    labels: Sequence[str],
    templates: Sequence[str],
    embed: Callable[[list[str]], NDArray[np.float32]],
) -> Tensor:
    """Return the embedding of each class (C, E): the mean of sentences about it.

    Args:
        labels: Names of the classes.
        templates: Sentences with a place for a name.
        embed: Embeds sentences.

    Raises:
        DataError: See `check_names`.
    """
    check_names(labels, templates)
    sentences = [text for row in prompts(labels, templates) for text in row]
    rows = torch.from_numpy(embed(sentences)).view(len(labels), len(templates), -1)
    return class_embeddings(rows)


def classifier_probabilities(
    task: ModelTask[Any], predictions: Predictions
) -> list[dict[str, float]]:
    """Return what a classifier predicts of each sample.

    Returns:
        Probabilities by name, the likeliest first; {"value": the number} of a regression.
    """
    if "value" in predictions.scores:
        return [{"value": value} for value in predictions.scores["value"].tolist()]
    rows = predictions.scores["probabilities"].tolist()
    return [sorted_by_probability(_names(task), row) for row in rows]


def sorted_by_probability(names: Sequence[str], probabilities: Sequence[float]) -> dict[str, float]:
    """Return probabilities by name in falling order."""
    order = sorted(range(len(names)), key=lambda number: -probabilities[number])
    return {names[number]: probabilities[number] for number in order}


def _names(task: ModelTask[Any]) -> tuple[str, ...]:
    if isinstance(task, AnswerClassification):
        return task.config.answers
    assert isinstance(task, (ImageClassification, ImageTextClassification, TextClassification))
    return task.config.labels
