"""Classifiers of texts alone, and regression: GLUE (FLAVA, section 4; RoBERTa's way of tuning)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from triptych.core.config import check
from triptych.core.errors import DataError
from triptych.core.outputs import Predictions
from triptych.data.collate.classification import (
    TextClassCollator,
    class_names,
)
from triptych.data.records import Record
from triptych.evaluation.label_metrics import CorrelationMetric
from triptych.evaluation.metrics import (
    Metric,
)
from triptych.models.base import VisionLanguageModel
from triptych.tasks.finetuning.base import FLAVA_HEAD, HeadConfig, ModelTask
from triptych.tasks.finetuning.image_text_classification import (
    class_loss,
    class_metrics,
    class_predictions,
)
from triptych.tasks.spec import (
    CollatorInputs,
    Evaluation,
    TaskConfig,
    TaskRecipe,
    TaskSpec,
)
from triptych.train.chance import Chance


@dataclass(frozen=True, kw_only=True, slots=True)
class TextClassificationConfig(TaskConfig):
    """Settings of a classifier of one text or of two.

    Attributes:
        labels: The classes, in the order of the scores; empty takes those of the training data.
        target: "class", or "number" for a value such as STS-B's similarity. If the training labels
            are floats it becomes "number".
        max_text_tokens: Longest text or pair of texts, including [CLS] and every [SEP].
        head: The classifier (FLAVA: dense D, ReLU, dropout 0.5, dense).
    """

    labels: tuple[str, ...] = ()
    target: Literal["class", "number"] = "class"
    max_text_tokens: int = 128
    head: HeadConfig = field(default_factory=lambda: FLAVA_HEAD)

    def __post_init__(self) -> None:
        """Reject lengths out of range."""
        check(self.max_text_tokens >= 3, "max_text_tokens", self.max_text_tokens, "be at least 3")


class TextClassification(ModelTask[VisionLanguageModel]):
    """One class of several by cross-entropy, or one number by its squared error.

    It reads the text encoder's pooled state; the image encoder is not touched.

    Args:
        model: Any model with a text encoder.
        config: Its `labels` must not be empty, unless a number is predicted.
    """

    objective_names = frozenset({"classification"})

    def __init__(self, model: VisionLanguageModel, config: TextClassificationConfig) -> None:
        self.is_number = config.target == "number"
        if not self.is_number:
            check(len(config.labels) > 1, "labels", config.labels, "name two classes or more")
        outputs = 1 if self.is_number else len(config.labels)
        super().__init__(model, config.head.build(model.feature_dims.text, outputs))
        self.config = config

    @property
    def batch_keys(self) -> frozenset[str]:
        """Keys that `losses` reads."""
        return frozenset({"token_ids", "text_mask", "value" if self.is_number else "label"})

    def text_scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return (B, C) float32 scores, or (B, 1) values; reads `token_ids` and `text_mask`."""
        text = self.model.encode_text(batch["token_ids"], batch["text_mask"])
        return self.scores(text.pooled)

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"classification": mean cross-entropy, or mean squared error}."""
        del active
        scores = self.text_scores(batch)
        if self.is_number:
            return {"classification": (scores[:, 0] - batch["value"]).square().mean()}
        return {"classification": class_loss(scores, batch["label"])}

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return the class, or the value, of each text; reads no `label` and no `value`."""
        scores = self.text_scores(batch)
        if self.is_number:
            values = scores[:, 0].cpu()
            return Predictions(index=batch["index"].tolist(), scores={"value": values})
        return class_predictions(batch, scores, self.config.labels)


def _text_metrics(
    config: TextClassificationConfig, records: Sequence[Record], all_records: Sequence[Record]
) -> list[Metric]:
    """Return what a classifier of texts is scored by; of numbers the correlations alone.

    Raises:
        DataError: A label is no number where numbers are predicted.
    """
    del all_records
    if config.target != "number":
        return class_metrics(config.labels, records)
    values = {i: r.label for i, r in enumerate(records) if isinstance(r.label, (int, float))}
    if len(values) < len(records):
        raise DataError("the model predicts numbers, and a label is none")
    return [CorrelationMetric({i: float(value) for i, value in values.items()})]


def _complete_texts(
    config: TextClassificationConfig, records: Sequence[Record]
) -> TextClassificationConfig:
    if config.labels or config.target == "number":
        return config
    if any(isinstance(record.label, float) for record in records):
        return replace(config, target="number")
    return replace(config, labels=class_names(records))


def _text_collator(config: TextClassificationConfig, inputs: CollatorInputs) -> TextClassCollator:
    return TextClassCollator(
        inputs.tokenizer,
        None if config.target == "number" else config.labels,
        max_text_tokens=config.max_text_tokens,
        train=inputs.train,
    )


SPEC = TaskSpec(
    config=TextClassificationConfig,
    trained_for="text_classification",
    build=lambda config, model, *_: TextClassification(model, config),
    collator=_text_collator,
    needs=("text|hypothesis", "label"),
    recipes=(
        TaskRecipe("classify.texts", default=True),
        TaskRecipe("flava.glue", "flava", teaches=("label_texts",)),
    ),
    serves=("label_texts",),
    evaluations=(
        Evaluation(
            "classification",
            "label",
            _text_metrics,
            num_images=0,
            reads=("text|hypothesis",),
            kept=("label", "value", "positive", "probabilities"),
            forms=("glue", "csv"),
        ),
    ),
    has_classifier=True,
    complete=_complete_texts,
    chances=lambda config: {"classification": Chance(labels="label")},
)
