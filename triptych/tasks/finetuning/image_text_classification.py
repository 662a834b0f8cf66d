"""Classifiers of an image with a text: entailment, hateful memes, answers of a closed list.

They read the pooled state of the fused pair, so any model with a fusion encoder can be trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.core.config import check
from triptych.core.outputs import Predictions
from triptych.models.base import PairReader, VisionLanguageModel
from triptych.objectives import IGNORE_INDEX
from triptych.tasks.finetuning.base import HeadConfig, ModelTask
from triptych.tasks.spec import TaskConfig

TextField = Literal["text", "caption", "question", "hypothesis", "statement"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTextClassificationConfig(TaskConfig):
    """Settings of a classifier of pairs, such as SNLI-VE or hateful memes.

    Attributes:
        labels: The classes, in the order of the scores; empty takes those of the training data.
        text_field: What is read beside the image: "hypothesis" for SNLI-VE, "text" for memes.
        with_premise: Whether a record's premise in words stands before that text, as `[CLS]
            premise [SEP] text [SEP]` (mPLUG and OFA on SNLI-VE: yes; its image alone: no).
        max_text_tokens: Longest text, [CLS] and every [SEP] counted.
        head: The classifier.
    """

    labels: tuple[str, ...] = ()
    text_field: TextField = "hypothesis"
    with_premise: bool = False
    max_text_tokens: int = 40
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        """Reject lengths out of range."""
        check(self.max_text_tokens >= 3, "max_text_tokens", self.max_text_tokens, "be at least 3")


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerClassificationConfig(TaskConfig):
    """Settings of visual question answering by a closed list of answers.

    Attributes:
        answers: The list, in the order of the scores; empty takes it from the training data.
        min_answer_count: Questions that an answer must be the most frequent of to be on the list
            (9 gives the 3,129 answers of VQAv2).
        max_answers: Most answers on the list.
        max_text_tokens: Longest question, [CLS] and [SEP] counted (VLMo: 40).
        head: The classifier (VLMo: dense 2D, LayerNorm, GELU, dense).
    """

    answers: tuple[str, ...] = ()
    min_answer_count: int = 9
    max_answers: int = 3129
    max_text_tokens: int = 40
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        """Reject counts out of range."""
        for name, least in (("min_answer_count", 1), ("max_answers", 1), ("max_text_tokens", 3)):
            value = getattr(self, name)
            check(value >= least, name, value, f"be at least {least}")


class _PairTask(ModelTask[VisionLanguageModel]):
    """Scores an image with a text."""

    def pair_scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return (B, C) float32 scores; reads `image`, `token_ids` and `text_mask`."""
        ids, mask = batch["token_ids"], batch["text_mask"]
        if isinstance(self.model, PairReader):
            return self.scores(self.model.pair_state(batch["image"], ids, mask))
        image, text = self.model.encode_image(batch["image"]), self.model.encode_text(ids, mask)
        return self.scores(self.model.fuse(image, text).pooled)


class ImageTextClassification(_PairTask):
    """One class of several, by cross-entropy.

    Args:
        model: Any model that can fuse.
        config: Its `labels` must not be empty.
    """

    batch_keys = frozenset({"image", "token_ids", "text_mask", "label", "index"})
    objective_names = frozenset({"classification"})

    def __init__(self, model: VisionLanguageModel, config: ImageTextClassificationConfig) -> None:
        check(len(config.labels) > 1, "labels", config.labels, "name two classes or more")
        super().__init__(model, config.head.build(model.feature_dims.fused, len(config.labels)))
        self.config = config

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"classification": mean cross-entropy}."""
        del active
        return {"classification": class_loss(self.pair_scores(batch), batch["label"])}

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return the class of each pair; reads no `label`."""
        return class_predictions(batch, self.pair_scores(batch), self.config.labels)


class AnswerClassification(_PairTask):
    """Answer from a closed list: binary cross-entropy to each answer's VQA accuracy.

    The loss is summed over answers and averaged over questions (VLMo: the mean times 3,129).

    Args:
        model: Any model that can fuse.
        config: Its `answers` must not be empty.
    """

    batch_keys = frozenset({"image", "token_ids", "text_mask", "answer_scores", "index"})
    objective_names = frozenset({"vqa"})

    def __init__(self, model: VisionLanguageModel, config: AnswerClassificationConfig) -> None:
        check(len(config.answers) > 0, "answers", config.answers, "hold an answer")
        super().__init__(model, config.head.build(model.feature_dims.fused, len(config.answers)))
        self.config = config

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"vqa": Σ over answers of the binary cross-entropy / questions}."""
        del active
        return {"vqa": answer_loss(self.pair_scores(batch), batch["answer_scores"])}

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Answer each question; reads `image`, `token_ids`, `text_mask` and `index`."""
        return class_predictions(batch, self.pair_scores(batch), self.config.answers)


def class_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of (B, C) scores to (B,) labels; 0 if none is labelled."""
    total = F.cross_entropy(scores.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (labels != IGNORE_INDEX).sum().clamp(min=1)


def answer_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy of (B, A) scores to targets in [0, 1], summed over A."""
    total = F.binary_cross_entropy_with_logits(scores.float(), targets, reduction="sum")
    return total / len(scores)


def class_predictions(
    batch: Mapping[str, Tensor], scores: Tensor, names: tuple[str, ...]
) -> Predictions:
    """Return the name of the best class of each row.

    Its `scores` also have the `probabilities` (B, C) of all classes, and `positive` (B,), that of
    the last one.
    """
    best = [names[number] for number in scores.argmax(dim=1).tolist()]
    shares = torch.softmax(scores, dim=1).cpu()
    return Predictions(
        index=batch["index"].tolist(),
        texts=best,
        scores={"label": best, "probabilities": shares, "positive": shares[:, -1]},
    )
