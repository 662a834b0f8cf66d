"""For each kind of task config: its Task, its collator, and what its model can be asked for."""

from __future__ import annotations

from typing import Any

from triptych.data.collate import (
    CaptioningCollator,
    Collator,
    GroundingCollator,
    PretrainingCollator,
    PretrainingTextConfig,
    RetrievalCollator,
    VQACollator,
)
from triptych.models.mplug.model import MPLUG
from triptych.recipes.config import TaskConfig, TextLengths
from triptych.tasks.finetuning.captioning import Captioning, CaptioningConfig
from triptych.tasks.finetuning.grounding import Grounding, GroundingConfig
from triptych.tasks.finetuning.retrieval import Retrieval, RetrievalConfig
from triptych.tasks.finetuning.vqa import VQA, VQAConfig
from triptych.tasks.pretraining.mplug import MPLUGPretraining, MPLUGPretrainingConfig
from triptych.text import Tokenizer
from triptych.train.task import Task

TRAINED_FOR = {
    MPLUGPretrainingConfig: "pretraining",
    CaptioningConfig: "captioning",
    RetrievalConfig: "retrieval",
    VQAConfig: "vqa",
    GroundingConfig: "grounding",
}
"""The word in a model folder's `trained_for`, by task config."""


def build_task(config: TaskConfig, model: MPLUG, tokenizer: Tokenizer) -> Task:
    """Bind a model to a task.

    Raises:
        DataError: The tokenizer has too few unused tokens for grounding.
    """
    ends: dict[str, Any] = {"cls_id": tokenizer.cls_id, "sep_id": tokenizer.sep_id}
    match config:
        case MPLUGPretrainingConfig():
            return MPLUGPretraining(model, config)
        case RetrievalConfig():
            return Retrieval(model, config)
        case CaptioningConfig():
            return Captioning(model, config, decode=tokenizer.decode, **ends)
        case VQAConfig():
            return VQA(model, config, decode=tokenizer.decode, **ends)
        case GroundingConfig():
            first = tokenizer.unused_id(config.first_bin_unused)
            tokenizer.unused_id(config.first_bin_unused + config.num_bins - 1)
            start = tokenizer.unused_id(config.start_unused)
            return Grounding(model, config, start_id=start, first_bin_id=first)


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
        case VQAConfig():
            return VQACollator(
                tokenizer,
                max_question_tokens=lengths.question,
                max_answer_tokens=lengths.answer,
                train=train,
            )
        case GroundingConfig():
            return GroundingCollator(tokenizer, max_text_tokens=lengths.phrase, train=train)
