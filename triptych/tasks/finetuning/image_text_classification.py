"""Classifiers of an image with a text: entailment, hateful memes, answers of a closed list.

They read the pooled state of the fused pair, so any model with a fusion encoder can be trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.core.config import check
from triptych.core.errors import DataError
from triptych.core.outputs import Predictions
from triptych.data.collate.classification import (
    AnswerClassCollator,
    ImageTextClassCollator,
    answer_vocabulary,
    class_names,
)
from triptych.data.records import Record
from triptych.evaluation.label_metrics import AUROCMetric, BinaryMetric
from triptych.evaluation.metrics import (
    ClassificationMetric,
    Metric,
)
from triptych.evaluation.vqa import normalize_answer
from triptych.models.base import PairReader, VisionLanguageModel, encode_frames
from triptych.objectives import IGNORE_INDEX
from triptych.tasks.finetuning.base import HeadConfig, ModelTask
from triptych.tasks.finetuning.vqa import vqa_metrics
from triptych.tasks.spec import (
    CollatorInputs,
    Evaluation,
    TaskConfig,
    TaskRecipe,
    TaskSpec,
)
from triptych.train.chance import Chance

TextField = Literal["text", "caption", "question", "hypothesis", "statement"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTextClassificationConfig(TaskConfig):
    """Settings of a classifier of pairs, such as SNLI-VE or hateful memes.

    Attributes:
        labels: The classes, in the order of the scores; empty takes those of the training data.
        text_field: Field of the text that is read with the image: "hypothesis" for SNLI-VE, "text"
            for memes.
        with_premise: Whether a record's premise precedes that text, as `[CLS] premise [SEP] text
            [SEP]` (mPLUG and OFA on SNLI-VE: yes; with the image alone: no).
        max_text_tokens: Longest text, including [CLS] and every [SEP].
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
        min_answer_count: An answer is listed if it is the most frequent one of at least so many
            questions (9 gives the 3,129 answers of VQAv2).
        max_answers: Largest number of answers on the list.
        max_text_tokens: Longest question, including [CLS] and [SEP] (VLMo: 40).
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
        image = encode_frames(self.model, batch["image"])
        text = self.model.encode_text(ids, mask)
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
    probabilities = torch.softmax(scores, dim=1).cpu()
    return Predictions(
        index=batch["index"].tolist(),
        texts=best,
        scores={"label": best, "probabilities": probabilities, "positive": probabilities[:, -1]},
    )


def _complete_answers(
    config: AnswerClassificationConfig, records: Sequence[Record]
) -> AnswerClassificationConfig:
    if config.answers:
        return config
    answers = answer_vocabulary(
        records,
        min_count=config.min_answer_count,
        max_answers=config.max_answers,
        normalise=normalize_answer,
    )
    return replace(config, answers=answers)


def _answer_collator(
    config: AnswerClassificationConfig, inputs: CollatorInputs
) -> AnswerClassCollator:
    return AnswerClassCollator(
        inputs.tokenizer,
        config.answers,
        normalise=normalize_answer,
        max_question_tokens=config.max_text_tokens,
        train=inputs.train,
    )


ANSWERS_SPEC = TaskSpec(
    config=AnswerClassificationConfig,
    trained_for="answer_classification",
    build=lambda config, model, *_: AnswerClassification(model, config),
    collator=_answer_collator,
    needs=("image|video", "question", "answers"),
    recipes=(
        TaskRecipe("vlmo.vqa", "vlmo"),
        TaskRecipe("flava.vqa", "flava"),
        TaskRecipe("classify.answers"),
    ),
    serves=("answer",),
    evaluations=(
        Evaluation(
            "vqa",
            "answers",
            lambda _, records, __: vqa_metrics(records, from_list=True),
            reads_clips=True,
            reads=("question",),
            kept=("text",),
            forms=("vqa",),
        ),
    ),
    has_classifier=True,
    complete=_complete_answers,
)


def class_metrics(labels: Sequence[str], records: Sequence[Record]) -> list[Metric]:
    """Return what a classifier is scored by.

    Accuracy; of two classes also AUROC, F1 and Matthews' correlation, the second being the positive
    one.
    """
    truth = {i: str(record.label) for i, record in enumerate(records)}
    metrics: list[Metric] = [ClassificationMetric(truth)]
    if len(labels) == 2:
        positive = labels[1]
        if len(set(truth.values())) > 1:  # a small part of the data may hold one class alone
            metrics.append(AUROCMetric(truth, positive=positive))
        metrics += [
            BinaryMetric(truth, positive=positive, kind="f1"),
            BinaryMetric(truth, positive=positive, kind="matthews"),
        ]
    return metrics


def _entailment_metrics(
    config: ImageTextClassificationConfig,
    records: Sequence[Record],
    all_records: Sequence[Record],
) -> list[Metric]:
    del config, all_records
    relations = {i: str(r.label) for i, r in enumerate(records)}
    return [ClassificationMetric(relations, "snli_ve", with_majority=True)]


def _pair_metrics(
    config: ImageTextClassificationConfig,
    records: Sequence[Record],
    all_records: Sequence[Record],
) -> list[Metric]:
    del all_records
    return class_metrics(config.labels, records)


def _meme_metrics(
    config: ImageTextClassificationConfig,
    records: Sequence[Record],
    all_records: Sequence[Record],
) -> list[Metric]:
    """Return AUROC and accuracy, the two numbers of the Hateful Memes challenge.

    Raises:
        DataError: The model knows other than two classes, or the data shows one alone.
    """
    del all_records
    truth = {i: str(record.label) for i, record in enumerate(records)}
    if len(config.labels) != 2 or len(set(truth.values())) != 2:
        raise DataError(
            f"hateful_memes is AUROC of two classes: the model knows {', '.join(config.labels)}, "
            f"and the data shows {', '.join(sorted(set(truth.values())))}; other labels are scored "
            "by --task classification"
        )
    return [AUROCMetric(truth, positive=config.labels[1]), ClassificationMetric(truth)]


def _complete_pairs(
    config: ImageTextClassificationConfig, records: Sequence[Record]
) -> ImageTextClassificationConfig:
    return config if config.labels else replace(config, labels=class_names(records))


def _pair_collator(
    config: ImageTextClassificationConfig, inputs: CollatorInputs
) -> ImageTextClassCollator:
    return ImageTextClassCollator(
        inputs.tokenizer,
        config.labels,
        text_field=config.text_field,
        with_premise=config.with_premise,
        max_text_tokens=config.max_text_tokens,
        train=inputs.train,
    )


_ENTAILMENT = ("entail", "snli_ve")


_LABELS = ("label", "classification")


_MEMES = ("hateful_memes",)


_MEME = ("image", "text", "label")


PAIRS_SPEC = TaskSpec(
    config=ImageTextClassificationConfig,
    trained_for="image_text_classification",
    build=lambda config, model, *_: ImageTextClassification(model, config),
    collator=_pair_collator,
    needs=("image", "hypothesis", "label"),
    recipes=(
        TaskRecipe("mplug.snli_ve", "mplug", teaches=_ENTAILMENT, default=True),
        TaskRecipe("vlmo.snli_ve", "vlmo", teaches=_ENTAILMENT),
        TaskRecipe("flava.snli_ve", "flava", teaches=_ENTAILMENT),
        TaskRecipe("flava.hateful_memes", "flava", needs=_MEME, teaches=_MEMES, default=True),
        TaskRecipe("mplug.hateful_memes", "mplug", needs=_MEME, teaches=_MEMES),
        TaskRecipe("vlmo.hateful_memes", "vlmo", needs=_MEME, teaches=_MEMES),
        TaskRecipe("classify.pairs", needs=("image", "text|hypothesis", "label"), teaches=_LABELS),
    ),
    serves=("entail", "label"),
    evaluations=(
        Evaluation(
            "snli_ve",
            "label",
            _entailment_metrics,
            reads=("hypothesis",),
            kept=("label", "probabilities"),
            forms=("snli_ve", "csv"),
        ),
        Evaluation(
            "classification",
            "label",
            _pair_metrics,
            reads=("text|caption|question|hypothesis|statement",),
            kept=("label", "positive", "probabilities"),
            forms=("csv",),
        ),
        Evaluation(
            "hateful_memes",
            "label",
            _meme_metrics,
            reads=("text",),
            kept=("label", "positive"),
            forms=("hateful_memes", "csv"),
        ),
    ),
    has_classifier=True,
    complete=_complete_pairs,
    chances=lambda config: {"classification": Chance(labels="label")},
)
