"""Batches for visual question answering by generation (paper, section 5.2.1; spec 5.1)."""

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


@dataclass(frozen=True, slots=True)
class VQASample:
    """One question and its distinct answers.

    Attributes:
        question_ids: `[CLS] question [SEP]`.
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
        train: Whether a record without answers is a problem.
    """

    needs_boxes = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_question_tokens: int = 25,
        max_answer_tokens: int = 12,
        train: bool = True,
    ) -> None:
        self.tokenizer, self.train = tokenizer, train
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
            question_ids=question.ids,
            answer_ids=tuple(distinct.values()),
            answer_weights=tuple(counts[key] / len(encoded) for key in distinct),
        )

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
