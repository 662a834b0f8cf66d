"""Batches of the fine-tuning tasks: captions, retrieval, questions, phrases, statements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from triptych.core.config import check
from triptych.data.caption_cleaning import MAX_WORDS, clean_caption, swap_sides
from triptych.data.collate.base import (
    IdArray,
    SampleProblem,
    TextCache,
    image_key,
    int_tensor,
    needed_text,
    text_batch,
)
from triptych.data.masking import IGNORE_INDEX
from triptych.data.records import Record
from triptych.data.skips import SkipKind
from triptych.data.transforms.pipeline import Box, TransformedImage
from triptych.text import Tokenizer


@dataclass(frozen=True, slots=True)
class CaptioningSample:
    """One caption, `[CLS] caption [SEP]`, or None where the record has none."""

    target_ids: IdArray | None


class CaptioningCollator:
    """Encode captions as they are, lower-cased (the released code does not clean them either).

    Args:
        tokenizer: Gives the ids.
        max_text_tokens: Longest caption, [CLS] and [SEP] counted.
        train: Whether a record without a caption is a problem.
    """

    needs_boxes = False

    def __init__(
        self, tokenizer: Tokenizer, *, max_text_tokens: int = 40, train: bool = True
    ) -> None:
        self.tokenizer, self.train = tokenizer, train
        self._texts = TextCache(tokenizer, max_text_tokens)

    def sample(
        self, record: Record, image: TransformedImage, rng: np.random.Generator
    ) -> CaptioningSample:
        """Encode one caption.

        Raises:
            SampleProblem: In training, there is no caption or nothing is left of it.
        """
        if record.caption is None and not self.train:
            return CaptioningSample(None)
        return CaptioningSample(needed_text(record.caption, "caption", record, self._texts).ids)

    def batch(self, samples: Sequence[CaptioningSample]) -> dict[str, Tensor]:
        """Join samples.

        Returns:
            `target_token_ids`, `target_mask` (B, L); neither where a record has no caption.
        """
        targets = [s.target_ids for s in samples if s.target_ids is not None]
        if len(targets) < len(samples):
            return {}
        token_ids, mask = self.tokenizer.pad(targets)
        return {"target_token_ids": token_ids, "target_mask": mask}


class ImageKeyCollator:
    """Name images by their keys: what training by reward knows of a sample.

    An image with several captions is several records, so an epoch meets it as often.
    """

    needs_boxes = False

    def sample(self, record: Record, image: TransformedImage, rng: np.random.Generator) -> int:
        """Return the key of the record's image."""
        return image_key(record)

    def batch(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """Join samples: `image_key` (B,) int64."""
        return {"image_key": int_tensor(samples)}


@dataclass(frozen=True, slots=True)
class RetrievalSample:
    """One caption `[CLS] caption [SEP]`, the key of its image and its own."""

    ids: IdArray
    image_key: int
    caption_key: int


class RetrievalCollator:
    """Clean and encode captions.

    Args:
        tokenizer: Gives the ids.
        max_text_tokens: Longest caption, [CLS] and [SEP] counted.
        max_words: Words of a caption that are kept; None leaves captions as they are.
    """

    needs_boxes = False

    def __init__(
        self, tokenizer: Tokenizer, *, max_text_tokens: int = 40, max_words: int | None = MAX_WORDS
    ) -> None:
        self.tokenizer, self.max_words = tokenizer, max_words
        self._texts = TextCache(tokenizer, max_text_tokens, self._clean)

    def _clean(self, caption: str) -> str:
        return clean_caption(caption, self.max_words)

    def sample(
        self, record: Record, image: TransformedImage, rng: np.random.Generator
    ) -> RetrievalSample:
        """Encode one caption.

        Raises:
            SampleProblem: There is no caption, or nothing is left of it.
        """
        text = needed_text(record.caption, "caption", record, self._texts)
        return RetrievalSample(text.ids, image_key(record), text.key)

    def batch(self, samples: Sequence[RetrievalSample]) -> dict[str, Tensor]:
        """Join samples.

        Returns:
            `token_ids`, `text_mask` (B, L); `image_key`, `caption_key` (B,) int64.
        """
        return text_batch(self.tokenizer, [s.ids for s in samples]) | {
            "image_key": int_tensor(s.image_key for s in samples),
            "caption_key": int_tensor(s.caption_key for s in samples),
        }


class CaptionCollator:
    """Clean and encode captions alone: the images of an evaluation are encoded apart.

    Args:
        tokenizer: Gives the ids.
        max_text_tokens: Longest caption, [CLS] and [SEP] counted.
        max_words: Words of a caption that are kept; None leaves captions as they are.
    """

    needs_boxes = False

    def __init__(
        self, tokenizer: Tokenizer, *, max_text_tokens: int = 40, max_words: int | None = MAX_WORDS
    ) -> None:
        self.tokenizer, self.max_words = tokenizer, max_words
        self._texts = TextCache(tokenizer, max_text_tokens, self._clean)

    def _clean(self, caption: str) -> str:
        return clean_caption(caption, self.max_words)

    def text_sample(self, record: Record, rng: np.random.Generator) -> IdArray:
        """Encode one caption.

        Raises:
            SampleProblem: There is no caption, or nothing is left of it.
        """
        return needed_text(record.caption, "caption", record, self._texts).ids

    def batch(self, samples: Sequence[IdArray]) -> dict[str, Tensor]:
        """Join samples: `token_ids`, `text_mask` (B, L)."""
        return text_batch(self.tokenizer, samples)


MAX_OCR_WORDS = 30
"""Words of an image that are kept (released)."""


@dataclass(frozen=True, slots=True)
class VQASample:
    """One question and its distinct answers.

    Attributes:
        question_ids: `[CLS] question [SEP]`, then `OCR words [SEP] object names [SEP]` if any.
        answer_ids: For each distinct answer `[CLS] answer [SEP]`.
        answer_weights: For each distinct answer its share of the human answers, times the record's
            `answers_weight`.
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
        """Encode one question and its answers; answers without a token are skipped.

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
        weight = 1.0 if record.answers_weight is None else record.answers_weight
        return VQASample(
            question_ids=self._with_words(question.ids, record),
            answer_ids=tuple(distinct.values()),
            answer_weights=tuple(weight * counts[key] / len(encoded) for key in distinct),
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
        batch = text_batch(self.tokenizer, [s.question_ids for s in samples])
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


@dataclass(frozen=True, slots=True)
class GroundingSample:
    """One phrase and its box.

    Attributes:
        ids: `[CLS] phrase [SEP]`.
        box: Centre x, centre y, width, height in [0, 1] of the transformed image, or None.
        width: Width of the original image in pixels.
        height: Height of the original image in pixels.
    """

    ids: IdArray
    box: Box | None
    width: int
    height: int


class GroundingCollator:
    """Encode phrases and carry boxes through the resize to a square and the mirror.

    Deviation from the released code: it keeps the aspect and pads.

    Args:
        tokenizer: Gives the ids.
        max_text_tokens: Longest phrase, [CLS] and [SEP] counted (released: 20).
        train: Whether a record without a usable box is a problem.
    """

    needs_boxes = True

    def __init__(
        self, tokenizer: Tokenizer, *, max_text_tokens: int = 20, train: bool = True
    ) -> None:
        self.tokenizer, self.train = tokenizer, train
        self._texts = TextCache(tokenizer, max_text_tokens)

    def sample(
        self, record: Record, image: TransformedImage, rng: np.random.Generator
    ) -> GroundingSample:
        """Encode one phrase and find its box in the transformed image.

        Raises:
            SampleProblem: There is no phrase; the box lies outside the image or has no area;
                or, in training, there is no box.
        """
        text = needed_text(record.phrase, "phrase", record, self._texts)
        return GroundingSample(text.ids, self._box(record, image), image.width, image.height)

    def _box(self, record: Record, image: TransformedImage) -> Box | None:
        if record.box is None and not self.train:
            return None
        where = f"record {record.record_id}"
        if record.box is None:
            raise SampleProblem(SkipKind.MISSING_FIELD, f"{where}: has no box")
        box = image.box_cxcywh(record.box)
        if box[2] <= 0 or box[3] <= 0:
            size = f"{image.width} x {image.height}"
            message = f"{where}: box {record.box} has no area in the image of {size} pixels"
            raise SampleProblem(SkipKind.BAD_BOX, message)
        return box

    def batch(self, samples: Sequence[GroundingSample]) -> dict[str, Tensor]:
        """Join samples.

        Returns:
            `token_ids`, `text_mask` (B, L); `image_size_px` (B, 2) int64, width and height of the
            originals; unless a record has no box also `box_cxcywh` (B, 4) float32 in [0, 1].
        """
        batch = text_batch(self.tokenizer, [s.ids for s in samples])
        sizes = int_tensor(side for s in samples for side in (s.width, s.height))
        batch["image_size_px"] = sizes.view(-1, 2)
        boxes = [s.box for s in samples if s.box is not None]
        if len(boxes) == len(samples):
            batch["box_cxcywh"] = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
        return batch


@dataclass(frozen=True, slots=True)
class StatementSample:
    """One statement `[CLS] statement [SEP]`, and 1 for true, 0 for false, IGNORE_INDEX for none."""

    ids: IdArray
    label: int


class StatementCollator:
    """Encode statements about two images; a `PairCollator`.

    Args:
        tokenizer: Gives the ids.
        max_text_tokens: Longest statement, [CLS] and [SEP] counted.
        swap_probability: Share of samples whose images change places, and the words left and
            right with them (released dataset code).
        train: Whether a record without a label is a problem.
    """

    needs_boxes = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_text_tokens: int = 40,
        swap_probability: float = 0.0,
        train: bool = True,
    ) -> None:
        check(0 <= swap_probability <= 1, "swap_probability", swap_probability, "be from 0 to 1")
        self.tokenizer, self.train = tokenizer, train
        self.swap_probability = swap_probability if train else 0.0
        self._texts = TextCache(tokenizer, max_text_tokens)

    def arrange(self, record: Record, rng: np.random.Generator) -> Record:
        """Return the record, or its statement about the images in the other order.

        Raises:
            SampleProblem: It has not two images.
        """
        if len(record.images) != 2:
            message = f"record {record.record_id}: has {len(record.images)} images, not two"
            raise SampleProblem(SkipKind.MISSING_FIELD, message)
        if record.statement is None or rng.random() >= self.swap_probability:
            return record
        statement = swap_sides(record.statement)
        return replace(record, images=record.images[::-1], statement=statement)

    def pair_sample(self, record: Record, rng: np.random.Generator) -> StatementSample:
        """Encode one statement.

        Raises:
            SampleProblem: There is no statement, or, in training, no label.
        """
        ids = needed_text(record.statement, "statement", record, self._texts).ids
        if record.label is None and self.train:
            message = f"record {record.record_id}: has no label for whether its statement is true"
            raise SampleProblem(SkipKind.BAD_LABEL, message)
        return StatementSample(ids, IGNORE_INDEX if record.label is None else int(record.label))

    def batch(self, samples: Sequence[StatementSample]) -> dict[str, Tensor]:
        """Join samples.

        Returns:
            `token_ids`, `text_mask` (B, L); `label` (B,) int64, IGNORE_INDEX for none.
        """
        label = int_tensor(s.label for s in samples)
        return text_batch(self.tokenizer, [s.ids for s in samples]) | {"label": label}
