"""Batches for captioning: the decoder's target, or the image whose captions give a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from triptych.data.collate.base import (
    IdArray,
    TextCache,
    image_key,
    int_tensor,
    needed_text,
)
from triptych.data.records import Record
from triptych.data.transforms.pipeline import TransformedImage
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
