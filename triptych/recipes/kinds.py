"""For each kind of task config: its Task, its collator, and what its model can be asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from triptych.data.collate import (
    CaptioningCollator,
    Collator,
    GroundingCollator,
    PictureKeyCollator,
    PretrainingCollator,
    PretrainingTextConfig,
    RetrievalCollator,
    VQACollator,
)
from triptych.data.collate.base import image_key
from triptych.data.records import Record
from triptych.models.mplug.model import MPLUG
from triptych.recipes.config import TaskConfig, TextLengths
from triptych.tasks.finetuning.captioning import Captioning, CaptioningConfig
from triptych.tasks.finetuning.grounding import Grounding, GroundingConfig
from triptych.tasks.finetuning.retrieval import Retrieval, RetrievalConfig
from triptych.tasks.finetuning.scst import SCST, CiderReward, SCSTConfig
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
}
"""The word in a model folder's `trained_for`, by task config."""


def stored_task(config: TaskConfig) -> TaskConfig:
    """Return the settings that a model folder keeps: those that its use needs."""
    return config.captioning if isinstance(config, SCSTConfig) else config


def build_task(
    config: TaskConfig, model: MPLUG, tokenizer: Tokenizer, records: Iterable[Record] = ()
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
) -> Collator[Any]:
    """Build what turns records into the batches of a task."""
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
