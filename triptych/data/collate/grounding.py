"""Batches for visual grounding: a phrase and its box (paper, section 5.2.4; released code)."""

from __future__ import annotations

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
from triptych.data.transforms.pipeline import Box, TransformedImage
from triptych.text import Tokenizer


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
        token_ids, text_mask = self.tokenizer.pad([s.ids for s in samples])
        sizes = int_tensor(side for s in samples for side in (s.width, s.height)).view(-1, 2)
        batch = {"token_ids": token_ids, "text_mask": text_mask, "image_size_px": sizes}
        boxes = [s.box for s in samples if s.box is not None]
        if len(boxes) == len(samples):
            batch["box_cxcywh"] = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
        return batch
