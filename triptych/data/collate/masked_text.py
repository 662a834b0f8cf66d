"""Batches for masked language modelling on texts alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from triptych.data.collate.base import IdArray, TextCache, needed_text
from triptych.data.collate.pretraining import PretrainingTextConfig
from triptych.data.masking import IGNORE_INDEX, MaskingVocabulary, mask_tokens
from triptych.data.records import Record
from triptych.text import Tokenizer


@dataclass(frozen=True, slots=True)
class MaskedTextSample:
    """One text, whole and masked.

    Attributes:
        ids: (L,) `[CLS] text [SEP]`.
        masked_ids: (L,) the same with chosen tokens hidden.
        mlm_labels: (L,) the hidden ids, -100 elsewhere.
    """

    ids: IdArray
    masked_ids: IdArray
    mlm_labels: IdArray


class MaskedTextCollator:
    """Encode texts as they are, lower-cased, and hide tokens; a record's caption is a text too.

    Args:
        tokenizer: Gives the ids.
        config: Lengths and probabilities; `max_words` is not read.
    """

    needs_boxes = False

    def __init__(self, tokenizer: Tokenizer, config: PretrainingTextConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self._vocabulary = MaskingVocabulary.of(tokenizer)
        self._texts = TextCache(tokenizer, config.max_text_tokens)

    def text_sample(self, record: Record, rng: np.random.Generator) -> MaskedTextSample:
        """Mask one text.

        Raises:
            SampleProblem: There is no text, or nothing is left of it.
        """
        ids = needed_text(record.text or record.caption, "text", record, self._texts).ids
        config = self.config
        masked_ids, labels = mask_tokens(
            ids, self._vocabulary, rng, config.mlm_probability, config.whole_word
        )
        return MaskedTextSample(ids, masked_ids, labels)

    def batch(self, samples: Sequence[MaskedTextSample]) -> dict[str, Tensor]:
        """Join samples.

        Returns:
            `token_ids`, `text_mask`, `mlm_token_ids`, `mlm_labels` (B, L).
        """
        token_ids, text_mask = self.tokenizer.pad([s.ids for s in samples])
        labels, _ = self.tokenizer.pad([s.mlm_labels for s in samples])
        return {
            "token_ids": token_ids,
            "text_mask": text_mask,
            "mlm_token_ids": self.tokenizer.pad([s.masked_ids for s in samples])[0],
            "mlm_labels": labels.masked_fill_(~text_mask, IGNORE_INDEX),
        }
