"""Batches for visual question answering by generation (paper, section 5.2.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from triptych.data.collate.base import (
    IdArray,
    SampleProblem,
    TextCache,
    int_tensor,
    needed_text,
)
from triptych.data.records import Record
from triptych.data.skips import SkipKind
from triptych.data.transforms.pipeline import TransformedImage
from triptych.text import Tokenizer

MAX_OCR_WORDS = 30
"""Words of an image that are kept (released)."""


@dataclass(frozen=True, slots=True)
class VQASample:
    """One question and its distinct answers.

    Attributes:
        question_ids: `[CLS] question [SEP]`, then `OCR words [SEP] object names [SEP]` if any.
        answer_ids: For each distinct answer `[CLS] answer [SEP]`.
        answer_weights: For each distinct answer its share of the human answers.
    """

    question_ids: IdArray
    answer_ids: tuple[IdArray, ...]
    answer_weights: tuple[float, ...]


class VQACollator:
    """Encode questions as they are, and each distinct answer weighted by count / answers.

    Args:
        tokenizer: Gives the ids.
        max_question_tokens: Longest question, [CLS] and [SEP] counted (released, without OCR: 25).
        max_answer_tokens: Longest answer, [CLS] and [SEP] counted.
        append_words: Whether OCR words and object names follow the question (released:
            `question [SEP] OCR words [SEP] object names`, at most 80 tokens in all).
        train: Whether a record without answers is a problem.
    """

    needs_boxes = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_question_tokens: int = 25,
        max_answer_tokens: int = 12,
        append_words: bool = True,
        train: bool = True,
    ) -> None:
        self.tokenizer, self.train, self.append_words = tokenizer, train, append_words
        self.max_question_tokens = max_question_tokens
        self._questions = TextCache(tokenizer, max_question_tokens)
        self._answers = TextCache(tokenizer, max_answer_tokens)

    def sample(
        self, record: Record, image: TransformedImage, rng: np.random.Generator
    ) -> VQASample:
        """Encode one question and its answers; answers without a token are left out.

        Raises:
            SampleProblem: There is no question, or, in training, no answer.
        """
        question = needed_text(record.question, "question", record, self._questions)
        encoded = [self._answers(answer) for answer in record.answers]
        encoded = [answer for answer in encoded if len(answer.ids) > 2]
        if not encoded and self.train:
            message = f"record {record.record_id}: has no answer to {record.question!r}"
            raise SampleProblem(SkipKind.BAD_ANSWERS, message)
        counts = Counter(answer.key for answer in encoded)
        distinct = {answer.key: answer.ids for answer in encoded}
        return VQASample(
            question_ids=self._with_words(question.ids, record),
            answer_ids=tuple(distinct.values()),
            answer_weights=tuple(counts[key] / len(encoded) for key in distinct),
        )

    def _with_words(self, question: IdArray, record: Record) -> IdArray:
        if not self.append_words:
            return question
        words = [" ".join(record.ocr_words), " ".join(record.object_words)]
        return append_words(self._questions, question, words, self.max_question_tokens)

    def batch(self, samples: Sequence[VQASample]) -> dict[str, Tensor]:
        """Join samples.

        Returns:
            `token_ids`, `text_mask` (B, L) of the questions. Unless no sample has an answer also,
            over the A distinct answers of all samples, `answer_token_ids`, `answer_mask` (A, La),
            `answer_weight` (A,) float32, and `answer_row` (A,) int64, the sample each belongs to.
        """
        token_ids, text_mask = self.tokenizer.pad([s.question_ids for s in samples])
        batch = {"token_ids": token_ids, "text_mask": text_mask}
        answers = [ids for s in samples for ids in s.answer_ids]
        if answers:
            batch["answer_token_ids"], batch["answer_mask"] = self.tokenizer.pad(answers)
            weights = [weight for s in samples for weight in s.answer_weights]
            batch["answer_weight"] = torch.tensor(weights, dtype=torch.float32)
            batch["answer_row"] = int_tensor(i for i, s in enumerate(samples) for _ in s.answer_ids)
        return batch


def append_words(
    encode: TextCache, question: IdArray, words: Sequence[str], max_tokens: int
) -> IdArray:
    """Append OCR words and object names to a question.

    Args:
        encode: Encodes a text as `[CLS] pieces [SEP]`.
        question: `[CLS] question [SEP]`.
        words: The OCR words, of which the first 30 count, and the object names, as two texts; an
            empty one adds nothing.
        max_tokens: Longest result; what is too long is cut off, [SEP] stays at the end.

    Returns:
        `[CLS] question [SEP] OCR words [SEP] object names [SEP]`.
    """
    ocr, objects = words
    kept = (" ".join(ocr.split()[:MAX_OCR_WORDS]), objects)
    parts = [encode(text).ids[1:] for text in kept if text.strip()]
    joined = np.concatenate([question, *(part for part in parts if len(part) > 1)])
    if len(joined) > max_tokens:
        joined = np.append(joined[: max_tokens - 1], question[-1])
    return joined
