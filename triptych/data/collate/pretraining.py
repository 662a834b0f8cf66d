"""Batches for mPLUG's four pre-training objectives (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from triptych.core.config import check
from triptych.data.caption_cleaning import MAX_WORDS, clean_caption
from triptych.data.collate.base import IdArray, TextCache, image_key, int_tensor, needed_text
from triptych.data.masking import IGNORE_INDEX, MaskingVocabulary, mask_tokens
from triptych.data.records import Record
from triptych.data.transforms.pipeline import TransformedImage
from triptych.text import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainingTextConfig:
    """How captions are prepared for pre-training.

    Attributes:
        max_text_tokens: Longest caption, [CLS] and [SEP] counted (released pre-training: 40).
        max_words: Words of a caption that are kept (released `pre_caption`: 30); None leaves
            captions as they are but for case and white space (FLAVA).
        mlm_probability: Share of tokens to predict (BERT: 0.15).
        whole_word: Whether the pieces of a word are masked together (BERT and mPLUG: no).
        empty_prefix_probability: Share of batches whose prefixes are all empty, so that the
            decoder says whole captions and the encoder reads one token; the first sample of a
            batch decides. Other batches split each caption uniformly (the paper: all do).
    """

    max_text_tokens: int = 40
    max_words: int | None = MAX_WORDS
    mlm_probability: float = 0.15
    whole_word: bool = False
    empty_prefix_probability: float = 0.0

    def __post_init__(self) -> None:
        """Reject values out of range."""
        check(self.max_text_tokens >= 3, "max_text_tokens", self.max_text_tokens, "be at least 3")
        words = self.max_words
        check(words is None or words >= 1, "max_words", words, "be at least 1, or absent")
        for name in ("mlm_probability", "empty_prefix_probability"):
            value = getattr(self, name)
            check(0 <= value <= 1, name, value, "be from 0 to 1")


@dataclass(frozen=True, slots=True)
class PretrainingSample:
    """One caption, whole, masked and split.

    Attributes:
        ids: (L,) `[CLS] caption [SEP]`.
        masked_ids: (L,) the same with chosen tokens hidden.
        mlm_labels: (L,) the hidden ids, -100 elsewhere.
        cut: Where the caption is split, in tokens: the prefix is `ids[:cut]`.
        wants_empty_prefix: Whether the batch has empty prefixes if this is its first sample.
        image_key: Key of the image.
        caption_key: Key of the cleaned caption.
    """

    ids: IdArray
    masked_ids: IdArray
    mlm_labels: IdArray
    cut: int
    wants_empty_prefix: bool
    image_key: int
    caption_key: int


class PretrainingCollator:
    """Clean, mask and split captions.

    The prefix length k is uniform in 0..words-1, so the target has at least one word. Deviation
    from the released pre-training: its captions have no [SEP].

    Args:
        tokenizer: Gives the ids.
        config: Lengths and probabilities.
    """

    needs_boxes = False

    def __init__(self, tokenizer: Tokenizer, config: PretrainingTextConfig | None = None) -> None:
        self.tokenizer = tokenizer
        self.config = config = config or PretrainingTextConfig()
        self._vocabulary = MaskingVocabulary.of(tokenizer)
        self._cls = np.array([tokenizer.cls_id], dtype=np.int64)
        self._texts = TextCache(tokenizer, config.max_text_tokens, self._clean)

    def _clean(self, caption: str) -> str:
        return clean_caption(caption, self.config.max_words)

    def sample(
        self, record: Record, image: TransformedImage, rng: np.random.Generator
    ) -> PretrainingSample:
        """Mask and split one caption.

        Raises:
            SampleProblem: There is no caption, or nothing is left of it.
        """
        text = needed_text(record.caption, "caption", record, self._texts)
        masked_ids, labels = mask_tokens(
            text.ids, self._vocabulary, rng, self.config.mlm_probability, self.config.whole_word
        )
        is_empty, place = rng.random(2).tolist()
        k = int(place * len(text.word_starts))
        return PretrainingSample(
            ids=text.ids,
            masked_ids=masked_ids,
            mlm_labels=labels,
            cut=text.word_starts[k],
            wants_empty_prefix=is_empty < self.config.empty_prefix_probability,
            image_key=image_key(record),
            caption_key=text.key,
        )

    def batch(self, samples: Sequence[PretrainingSample]) -> dict[str, Tensor]:
        """Join samples.

        Returns:
            `token_ids`, `text_mask`, `mlm_token_ids`, `mlm_labels` (B, L); `prefix_token_ids`,
            `prefix_mask` (B, Lp); `target_token_ids`, `target_mask` (B, Lt); `image_key`,
            `caption_key` (B,) int64.
        """
        pad = self.tokenizer.pad
        token_ids, text_mask = pad([s.ids for s in samples])
        mlm_labels, _ = pad([s.mlm_labels for s in samples])
        cuts = [1] * len(samples) if samples[0].wants_empty_prefix else [s.cut for s in samples]
        prefix_ids, prefix_mask = pad([s.ids[:cut] for s, cut in zip(samples, cuts, strict=True)])
        target_ids, target_mask = pad(
            [np.concatenate([self._cls, s.ids[c:]]) for s, c in zip(samples, cuts, strict=True)]
        )
        return {
            "token_ids": token_ids,
            "text_mask": text_mask,
            "mlm_token_ids": pad([s.masked_ids for s in samples])[0],
            "mlm_labels": mlm_labels.masked_fill_(~text_mask, IGNORE_INDEX),
            "prefix_token_ids": prefix_ids,
            "prefix_mask": prefix_mask,
            "target_token_ids": target_ids,
            "target_mask": target_mask,
            "image_key": int_tensor(s.image_key for s in samples),
            "caption_key": int_tensor(s.caption_key for s in samples),
        }
