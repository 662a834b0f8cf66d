"""Batches for classifiers: of a picture with a text, of a text, and of a question by answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from triptych.data.labels import Normalise, answer_scores
from triptych.data.masking import IGNORE_INDEX
from triptych.data.records import Record
from triptych.data.skips import SkipKind
from triptych.data.transforms.pipeline import TransformedImage
from triptych.text import Tokenizer


@dataclass(frozen=True, slots=True)
class ClassifiedText:
    """A text `[CLS] text [SEP]` and the number of its class, IGNORE_INDEX for none."""

    ids: IdArray
    label: int


class ImageTextClassCollator:
    """Encode one text field of a record, and number its label.

    Args:
        tokenizer: Gives the ids.
        labels: The classes, in the order of the scores.
        text_field: The field of the record that is read beside the picture.
        max_text_tokens: Longest text, [CLS] and [SEP] counted.
        train: Whether a record without a known label is a problem.
    """

    needs_boxes = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        *,
        text_field: str,
        max_text_tokens: int,
        train: bool = True,
    ) -> None:
        self.tokenizer, self.text_field, self.train = tokenizer, text_field, train
        self._numbers = {label: number for number, label in enumerate(labels)}
        self._texts = TextCache(tokenizer, max_text_tokens)

    def sample(
        self, record: Record, image: TransformedImage, rng: np.random.Generator
    ) -> ClassifiedText:
        """Encode one text.

        Raises:
            SampleProblem: There is no text, or, in training, no label that is among the classes.
        """
        text = needed_text(getattr(record, self.text_field), self.text_field, record, self._texts)
        return ClassifiedText(text.ids, label_number(record, self._numbers, self.train))

    def batch(self, samples: Sequence[ClassifiedText]) -> dict[str, Tensor]:
        """Join samples.

        Returns:
            `token_ids`, `text_mask` (B, L); `label` (B,) int64, IGNORE_INDEX for none.
        """
        token_ids, text_mask = self.tokenizer.pad([s.ids for s in samples])
        label = int_tensor(s.label for s in samples)
        return {"token_ids": token_ids, "text_mask": text_mask, "label": label}


@dataclass(frozen=True, slots=True)
class ScoredQuestion:
    """A question `[CLS] question [SEP]`, and the score of each answer that people gave.

    Attributes:
        ids: The question.
        scores: Score by number of the answer; answers outside the list are left out.
    """

    ids: IdArray
    scores: Mapping[int, float]


class AnswerClassCollator:
    """Encode questions, and give each answer of a closed list its VQA accuracy as a target.

    A question none of whose answers is in the list teaches that all of them are wrong. (The
    released code of ViLT and VLMo leaves such questions out.)

    Args:
        tokenizer: Gives the ids.
        answers: The closed list, in the order of the scores.
        normalise: Makes answers that mean the same equal; the list is normalised already.
        max_question_tokens: Longest question, [CLS] and [SEP] counted (VLMo: 40).
        train: Whether a record without answers is a problem.
    """

    needs_boxes = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        answers: Sequence[str],
        *,
        normalise: Normalise,
        max_question_tokens: int = 40,
        train: bool = True,
    ) -> None:
        self.tokenizer, self.normalise, self.train = tokenizer, normalise, train
        self._numbers = {answer: number for number, answer in enumerate(answers)}
        self._questions = TextCache(tokenizer, max_question_tokens)

    def sample(
        self, record: Record, image: TransformedImage, rng: np.random.Generator
    ) -> ScoredQuestion:
        """Encode one question and score its answers.

        Raises:
            SampleProblem: There is no question, or, in training, no answer.
        """
        question = needed_text(record.question, "question", record, self._questions)
        if self.train and not record.answers:
            message = f"record {record.record_id}: has no answer to {record.question!r}"
            raise SampleProblem(SkipKind.BAD_ANSWERS, message)
        scores = answer_scores([self.normalise(answer) for answer in record.answers])
        known = {self._numbers[a]: score for a, score in scores.items() if a in self._numbers}
        return ScoredQuestion(question.ids, known)

    def batch(self, samples: Sequence[ScoredQuestion]) -> dict[str, Tensor]:
        """Join samples.

        Returns:
            `token_ids`, `text_mask` (B, L); `answer_scores` (B, A) float32 in [0, 1].
        """
        token_ids, text_mask = self.tokenizer.pad([s.ids for s in samples])
        scores = torch.zeros(len(samples), len(self._numbers))
        for row, sample in zip(scores, samples, strict=True):
            for number, score in sample.scores.items():
                row[number] = score
        return {"token_ids": token_ids, "text_mask": text_mask, "answer_scores": scores}


def label_number(record: Record, numbers: Mapping[str, int], train: bool) -> int:
    """Return the number of a record's label, IGNORE_INDEX for none.

    Raises:
        SampleProblem: In training, there is no label, or it is not among the classes.
    """
    number = None if record.label is None else numbers.get(str(record.label))
    if number is None and train:
        message = f"record {record.record_id}: label {record.label!r} is none of {list(numbers)}"
        raise SampleProblem(SkipKind.BAD_LABEL, message)
    return IGNORE_INDEX if number is None else number
