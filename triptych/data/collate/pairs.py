"""Batches of statements about two images (NLVR2; paper, section 5.2.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from triptych.core.config import check
from triptych.data.caption_cleaning import swap_sides
from triptych.data.collate.base import (
    IdArray,
    SampleProblem,
    TextCache,
    int_tensor,
    needed_text,
)
from triptych.data.masking import IGNORE_INDEX
from triptych.data.records import Record
from triptych.data.skips import SkipKind
from triptych.text import Tokenizer


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
        """Return the record, or the same said of the images in the other order.

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
            message = f"record {record.record_id}: does not say whether its statement is true"
            raise SampleProblem(SkipKind.BAD_LABEL, message)
        return StatementSample(ids, IGNORE_INDEX if record.label is None else int(record.label))

    def batch(self, samples: Sequence[StatementSample]) -> dict[str, Tensor]:
        """Join samples.

        Returns:
            `token_ids`, `text_mask` (B, L); `label` (B,) int64, IGNORE_INDEX for none.
        """
        token_ids, text_mask = self.tokenizer.pad([s.ids for s in samples])
        label = int_tensor(s.label for s in samples)
        return {"token_ids": token_ids, "text_mask": text_mask, "label": label}
