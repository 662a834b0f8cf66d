"""Batches for retrieval: captions, and keys that tell which pairs belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from triptych.data.caption_cleaning import MAX_WORDS, clean_caption
from triptych.data.collate.base import IdArray, TextCache, image_key, int_tensor, needed_text
from triptych.data.records import Record
from triptych.data.transforms.pipeline import TransformedImage
from triptych.text import Tokenizer


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
        token_ids, text_mask = self.tokenizer.pad([s.ids for s in samples])
        return {
            "token_ids": token_ids,
            "text_mask": text_mask,
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
        token_ids, text_mask = self.tokenizer.pad(samples)
        return {"token_ids": token_ids, "text_mask": text_mask}
