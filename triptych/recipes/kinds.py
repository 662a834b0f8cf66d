"""For each kind of task config: its Task, its collator, and what its model can be asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from triptych.data.collate import (
    CaptioningCollator,
    Collator,
    GroundingCollator,
    PictureKeyCollator,
    PretrainingCollator,
    PretrainingTextConfig,
    RetrievalCollator,
    TextCollator,
    VQACollator,
)
from triptych.data.collate.base import image_key
from triptych.data.collate.classification import (
    AnswerClassCollator,
    ImageTextClassCollator,
    TextClassCollator,
)
from triptych.data.labels import answer_vocabulary, class_names
from triptych.data.records import Record
from triptych.evaluation.vqa import normalize_answer
from triptych.recipes.config import TaskConfig, TextLengths
from triptych.tasks.finetuning.captioning import Captioning, CaptioningConfig
from triptych.tasks.finetuning.grounding import Grounding, GroundingConfig
from triptych.tasks.finetuning.image_text_classification import (
    AnswerClassification,
    AnswerClassificationConfig,
    ImageTextClassification,
    ImageTextClassificationConfig,
)
from triptych.tasks.finetuning.retrieval import Retrieval, RetrievalConfig
from triptych.tasks.finetuning.scst import SCST, CiderReward, SCSTConfig
from triptych.tasks.finetuning.text_classification import (
    TextClassification,
    TextClassificationConfig,
)
from triptych.tasks.finetuning.vqa import VQA, VQAConfig
from triptych.tasks.pretraining.mplug import MPLUGPretraining, MPLUGPretrainingConfig
from triptych.text import Tokenizer
from triptych.train.task import Task

TRAINED_FOR = {
    MPLUGPretrainingConfig: "pretraining",
    CaptioningConfig: "captioning",
    SCSTConfig: "captioning",
    RetrievalConfig: "retrieval",
    VQAConfig: "vqa",
    GroundingConfig: "grounding",
    AnswerClassificationConfig: "answer_classification",
    ImageTextClassificationConfig: "image_text_classification",
    TextClassificationConfig: "text_classification",
}
"""The word in a model folder's `trained_for`, by task config."""


def stored_task(config: TaskConfig) -> TaskConfig:
    """Return the settings that a model folder keeps: those that its use needs."""
    return config.captioning if isinstance(config, SCSTConfig) else config


def complete_task(config: TaskConfig, records: Sequence[Record]) -> TaskConfig:
    """Return a task's settings with the classes or answers of the training data filled in.

    Raises:
        DataError: The data has fewer than two classes, or no answer is frequent enough.
    """
    match config:
        case AnswerClassificationConfig(answers=()):
            answers = answer_vocabulary(
                records,
                min_count=config.min_answer_count,
                max_answers=config.max_answers,
                normalise=normalize_answer,
            )
            return replace(config, answers=answers)
        case TextClassificationConfig(labels=(), target="class") if _has_values(records):
            return replace(config, target="number")
        case (
            ImageTextClassificationConfig(labels=())
            | TextClassificationConfig(labels=(), target="class")
        ):
            return replace(config, labels=class_names(records))
        case _:
            return config


def _has_values(records: Sequence[Record]) -> bool:
    return any(isinstance(record.label, float) for record in records)


def build_task(
    config: TaskConfig, model: Any, tokenizer: Tokenizer, records: Iterable[Record] = ()
) -> Task:
    """Bind a model to a task.

    Args:
        config: The task's settings.
        model: What it trains or uses.
        tokenizer: The model's words.
        records: The training data; SCST takes its rewards from their captions.

    Raises:
        DataError: The tokenizer has too few unused tokens for grounding, or SCST has no captions.
    """
    match config:
        case MPLUGPretrainingConfig():
            return MPLUGPretraining(model, config)
        case RetrievalConfig():
            return Retrieval(model, config)
        case CaptioningConfig():
            return Captioning(model, config, tokenizer)
        case SCSTConfig():
            return SCST(model, config, tokenizer, build_reward(config, records))
        case VQAConfig():
            return VQA(model, config, tokenizer)
        case GroundingConfig():
            first = tokenizer.unused_id(config.first_bin_unused)
            tokenizer.unused_id(config.first_bin_unused + config.num_bins - 1)
            start = tokenizer.unused_id(config.start_unused)
            return Grounding(model, config, start_id=start, first_bin_id=first)
        case AnswerClassificationConfig():
            return AnswerClassification(model, config)
        case ImageTextClassificationConfig():
            return ImageTextClassification(model, config)
        case TextClassificationConfig():
            return TextClassification(model, config)


def build_reward(config: SCSTConfig, records: Iterable[Record]) -> CiderReward:
    """Return the reward of captions: CIDEr-D with the captions and frequencies of the records.

    Raises:
        DataError: There are captions of fewer than two pictures.
    """
    captions: dict[int, list[str]] = {}
    for record in records:
        if record.image is not None and record.caption:
            captions.setdefault(image_key(record), []).append(record.caption)
    return CiderReward(captions, reward_end=config.reward_end)


def build_collator(
    config: TaskConfig,
    tokenizer: Tokenizer,
    captions: PretrainingTextConfig,
    lengths: TextLengths,
    *,
    train: bool,
    kind: str | None = None,
) -> Collator[Any] | TextCollator[Any]:
    """Build what turns records into the batches of a task.

    Args:
        config: The task's settings.
        tokenizer: The model's words.
        captions: How captions are prepared.
        lengths: Longest texts.
        train: Whether records without labels are a problem.
        kind: Which of the task's kinds of batches, for a task of several.
    """
    del kind  # no task here takes several yet
    match config:
        case MPLUGPretrainingConfig():
            return PretrainingCollator(tokenizer, captions)
        case RetrievalConfig():
            return RetrievalCollator(
                tokenizer, max_text_tokens=captions.max_text_tokens, max_words=captions.max_words
            )
        case CaptioningConfig():
            return CaptioningCollator(
                tokenizer, max_text_tokens=captions.max_text_tokens, train=train
            )
        case SCSTConfig():
            return PictureKeyCollator()
        case VQAConfig():
            return VQACollator(
                tokenizer,
                max_question_tokens=lengths.question,
                max_answer_tokens=lengths.answer,
                append_words=config.append_words,
                train=train,
            )
        case GroundingConfig():
            return GroundingCollator(tokenizer, max_text_tokens=lengths.phrase, train=train)
        case AnswerClassificationConfig():
            return AnswerClassCollator(
                tokenizer,
                config.answers,
                normalise=normalize_answer,
                max_question_tokens=config.max_text_tokens,
                train=train,
            )
        case ImageTextClassificationConfig():
            return ImageTextClassCollator(
                tokenizer,
                config.labels,
                text_field=config.text_field,
                max_text_tokens=config.max_text_tokens,
                train=train,
            )
        case TextClassificationConfig():
            return TextClassCollator(
                tokenizer,
                None if config.target == "number" else config.labels,
                max_text_tokens=config.max_text_tokens,
                train=train,
            )
