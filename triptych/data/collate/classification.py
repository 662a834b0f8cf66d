"""Batches for classifiers, and their closed lists of classes and answers, drawn from the data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from triptych.core.errors import ConfigError, DataError
from triptych.data.collate.base import (
    IdArray,
    SampleProblem,
    TextCache,
    int_tensor,
    needed_text,
    text_batch,
)
from triptych.data.masking import IGNORE_INDEX
from triptych.data.records import Record
from triptych.data.skips import SkipKind
from triptych.data.transforms.pipeline import TransformedImage
from triptych.text import Tokenizer

Normalise = Callable[[str], str]


def class_names(records: Iterable[Record]) -> tuple[str, ...]:
    """Return the distinct labels of records, as text: numbers by value, then names by alphabet.

    Raises:
        DataError: Fewer than two records differ in their label.
    """
    return distinct_classes(record.label for record in records if record.label is not None)


def distinct_classes(labels: Iterable[object]) -> tuple[str, ...]:
    """Return distinct labels as text, as `class_names` orders them.

    Raises:
        DataError: Fewer than two differ.
    """
    names = sorted({str(label) for label in labels}, key=_order)
    if len(names) < 2:
        found = f"all records have the label {names[0]!r}" if names else "no record has a label"
        raise DataError(
            f"a classifier needs two classes or more, and {found}: give each record its class in "
            "the field label"
        )
    return tuple(names)


@dataclass(frozen=True, slots=True)
class ClassPicker:
    """Takes the class out of a label.

    Attributes:
        pattern: A regular expression whose first group in a label is the class; None takes the
            whole label.
    """

    pattern: str | None = None

    def __post_init__(self) -> None:
        """Reject what is no regular expression with a group."""
        if self.pattern is None:
            return
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ConfigError(f"label_pattern = {self.pattern!r}: {error}") from error
        if groups < 1:
            raise ConfigError(
                f"label_pattern = {self.pattern!r}: must have a group, such as '_(.+)$'"
            )

    def __call__(self, label: str) -> str:
        """Return the class.

        Raises:
            ConfigError: The label does not fit.
        """
        if self.pattern is None:
            return label
        found = re.search(self.pattern, label)
        if found is None or not found[1]:
            raise ConfigError(f"label {label!r} does not fit label_pattern = {self.pattern!r}")
        return found[1]


def answer_vocabulary(
    records: Iterable[Record], *, min_count: int, max_answers: int, normalise: Normalise
) -> tuple[str, ...]:
    """Return the answers that a classifier chooses from, the most frequent first.

    Each question counts once, for its most frequent answer (of several the first), as the 3,129
    answers of VQAv2's classifiers were chosen; other answers of the same people only earn scores.

    Args:
        records: Training records.
        min_count: Questions that an answer must be the most frequent of (VQAv2: 9).
        max_answers: Most answers kept; of equally frequent ones the alphabet decides.
        normalise: Makes answers that mean the same equal.

    Raises:
        DataError: There are no answers, or none is frequent enough.
    """
    counts: Counter[str] = Counter()
    for record in records:
        given = [text for text in map(normalise, record.answers) if text]
        if given:
            counts[Counter(given).most_common(1)[0][0]] += 1
    if not counts:
        raise DataError(
            "no question has an answer: give each record its answers in the field answers"
        )
    kept = sorted(
        (text for text in counts if counts[text] >= min_count), key=lambda t: (-counts[t], t)
    )
    if not kept:
        text, count = counts.most_common(1)[0]
        raise DataError(
            f"no answer belongs to {min_count} questions or more (the most frequent, {text!r}, has "
            f"{count}): lower task.min_answer_count, or give more data"
        )
    return tuple(kept[:max_answers])


def answer_scores(answers: Sequence[str]) -> dict[str, float]:
    """Return what each distinct answer would score in VQA's accuracy.

    Each human answer is excluded once, and m matches among the others score min(1, m / 3). Of ten
    answers one given by 1, 2, 3 or 4 people scores 0.3, 0.6, 0.9 or 1. With n < 4 answers n - 1
    matches are enough for 1, and a single answer scores 1.

    Args:
        answers: The human answers, normalised.
    """
    others = len(answers) - 1
    enough = min(3, others)
    scores = {}
    for answer, matches in Counter(answers).items():
        if others == 0:
            scores[answer] = 1.0
            continue
        left_out_match = matches * min(1.0, (matches - 1) / enough)
        left_out_other = (len(answers) - matches) * min(1.0, matches / enough)
        scores[answer] = (left_out_match + left_out_other) / len(answers)
    return scores


def _order(name: str) -> tuple[int, float, str]:
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name


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
        text_field: The field of the record that is read beside the image.
        with_premise: Whether the record's premise, where it has one, stands before the text.
        max_text_tokens: Longest text, [CLS] and every [SEP] counted.
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
        with_premise: bool = False,
        train: bool = True,
    ) -> None:
        self.tokenizer, self.text_field, self.train = tokenizer, text_field, train
        self.with_premise, self.max_text_tokens = with_premise, max_text_tokens
        self._numbers = {label: number for number, label in enumerate(labels)}
        self._texts = TextCache(tokenizer, max_text_tokens)

    def sample(
        self, record: Record, image: TransformedImage, rng: np.random.Generator
    ) -> ClassifiedText:
        """Encode one text.

        Raises:
            SampleProblem: There is no text, or, in training, no label that is among the classes.
        """
        text = getattr(record, self.text_field)
        ids = needed_text(text, self.text_field, record, self._texts).ids
        if self.with_premise and record.premise is not None:
            premise = needed_text(record.premise, "premise", record, self._texts).ids
            ids = join_pair(premise, ids, self.max_text_tokens)
        return ClassifiedText(ids, label_number(record, self._numbers, self.train))

    def batch(self, samples: Sequence[ClassifiedText]) -> dict[str, Tensor]:
        """Join samples.

        Returns:
            `token_ids`, `text_mask` (B, L); `label` (B,) int64, IGNORE_INDEX for none.
        """
        label = int_tensor(s.label for s in samples)
        return text_batch(self.tokenizer, [s.ids for s in samples]) | {"label": label}


@dataclass(frozen=True, slots=True)
class ScoredQuestion:
    """A question `[CLS] question [SEP]`, and the score of each answer that people gave.

    Attributes:
        ids: The question.
        scores: Score by number of the answer; answers outside the list are ignored.
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
        scores = torch.zeros(len(samples), len(self._numbers))
        for row, sample in zip(scores, samples, strict=True):
            for number, score in sample.scores.items():
                row[number] = score
        return text_batch(self.tokenizer, [s.ids for s in samples]) | {"answer_scores": scores}


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text or a pair of texts, with its class, IGNORE_INDEX for none, or its value."""

    ids: IdArray
    label: int = IGNORE_INDEX
    value: float = 0.0


class TextClassCollator:
    """Encode `[CLS] text [SEP]`, or `[CLS] premise [SEP] hypothesis [SEP]`, without images.

    Of a pair that is too long, the longer text loses its last tokens first.

    Args:
        tokenizer: Gives the ids.
        labels: The classes, in the order of the scores; None for a number to predict.
        max_text_tokens: Longest result, [CLS] and every [SEP] counted.
        train: Whether a record without a known label is a problem.
    """

    needs_boxes = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        labels: Sequence[str] | None,
        *,
        max_text_tokens: int,
        train: bool = True,
    ) -> None:
        self.tokenizer, self.train, self.max_text_tokens = tokenizer, train, max_text_tokens
        self._numbers = (
            None if labels is None else {label: number for number, label in enumerate(labels)}
        )
        self._texts = TextCache(tokenizer, max_text_tokens)

    def text_sample(self, record: Record, rng: np.random.Generator) -> LabelledText:
        """Encode one text or pair.

        Raises:
            SampleProblem: There is no text, or, in training, no label that can be learned.
        """
        ids = self._ids(record)
        if self._numbers is not None:
            return LabelledText(ids, label=label_number(record, self._numbers, self.train))
        usable = isinstance(record.label, (int, float)) and not isinstance(record.label, bool)
        if self.train and not usable:
            message = f"record {record.record_id}: label {record.label!r} is no number"
            raise SampleProblem(SkipKind.BAD_LABEL, message)
        return LabelledText(ids, value=float(record.label) if usable else 0.0)  # type: ignore[arg-type]

    def batch(self, samples: Sequence[LabelledText]) -> dict[str, Tensor]:
        """Join samples.

        Returns:
            `token_ids`, `text_mask` (B, L); `label` (B,) int64, IGNORE_INDEX for none, or `value`
            (B,) float32.
        """
        batch = text_batch(self.tokenizer, [s.ids for s in samples])
        if self._numbers is None:
            batch["value"] = torch.tensor([s.value for s in samples], dtype=torch.float32)
        else:
            batch["label"] = int_tensor(s.label for s in samples)
        return batch

    def _ids(self, record: Record) -> IdArray:
        if record.hypothesis is None or record.premise is None:
            text = record.hypothesis if record.text is None else record.text
            return needed_text(text, "text", record, self._texts).ids
        first = needed_text(record.premise, "premise", record, self._texts).ids
        second = needed_text(record.hypothesis, "hypothesis", record, self._texts).ids
        return join_pair(first, second, self.max_text_tokens)


class ImageClassCollator:
    """Number the classes of images.

    Args:
        labels: The classes, in the order of the scores.
        label_pattern: Takes the class out of a label, see `ClassPicker`.
        train: Whether a record without a known label is a problem.
    """

    needs_boxes = False

    def __init__(
        self, labels: Sequence[str], *, label_pattern: str | None = None, train: bool = True
    ) -> None:
        self._numbers = {label: number for number, label in enumerate(labels)}
        self._pick, self.train = ClassPicker(label_pattern), train

    def sample(self, record: Record, image: TransformedImage, rng: np.random.Generator) -> int:
        """Return the number of the class, IGNORE_INDEX for none.

        Raises:
            SampleProblem: In training, there is no label that is among the classes.
        """
        del image, rng
        if record.label is not None and self.train:
            record = replace(record, label=self._pick(str(record.label)))
        return label_number(record, self._numbers, self.train) if self.train else IGNORE_INDEX

    def batch(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """Return `label` (B,) int64; IGNORE_INDEX outside training, where no label is read."""
        return {"label": int_tensor(samples)}


def join_pair(first: IdArray, second: IdArray, max_tokens: int) -> IdArray:
    """Return `[CLS] first [SEP] second [SEP]` of two encoded texts.

    Args:
        first: (L1,) `[CLS] first [SEP]`.
        second: (L2,) `[CLS] second [SEP]`.
        max_tokens: Longest result; the longer text loses its last tokens first.
    """
    second = second[1:]
    for _ in range(max(len(first) + len(second) - max_tokens, 0)):
        if len(first) - 1 > len(second):  # [CLS] counts for the first
            first = np.delete(first, -2)  # the last entry is [SEP]
        else:
            second = np.delete(second, -2)
    return np.concatenate([first, second])


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
