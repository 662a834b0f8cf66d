"""Batches with texts for pre-training: of pairs for mPLUG and FLAVA, and of texts alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from triptych.core.config import check, check_range
from triptych.data.caption_cleaning import MAX_WORDS, clean_caption
from triptych.data.collate.base import IdArray, TextCache, image_key, int_tensor, needed_text
from triptych.data.collate.image import MaskedImageCollator, MaskedImageSample
from triptych.data.masking import IGNORE_INDEX, MaskingVocabulary, mask_tokens
from triptych.data.records import Record
from triptych.data.transforms.pipeline import TransformedImage
from triptych.text import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainingTextConfig:
    """How captions are prepared for pre-training.

    Attributes:
        max_text_tokens: Longest caption, including [CLS] and [SEP] (released pre-training: 40).
        max_words: Words kept of each caption (released `pre_caption`: 30); None changes only case
            and white space (FLAVA).
        mlm_probability: Share of tokens to predict (BERT: 0.15).
        whole_word: Whether all tokens of a word are masked together (BERT and mPLUG: no).
        empty_prefix_probability: Share of batches in which all prefixes are empty, so that the
            decoder generates whole captions and the encoder reads one token; the first sample of
            the batch of all processes decides. Other batches split each caption at a uniform
            position (the paper: all do).
    """

    max_text_tokens: int = 40
    max_words: int | None = MAX_WORDS
    mlm_probability: float = 0.15
    whole_word: bool = False
    empty_prefix_probability: float = 0.0

    def __post_init__(self) -> None:
        """Reject values out of range."""
        check_range("max_text_tokens", self.max_text_tokens, 3, 1_000_000)
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
        masked_ids: (L,) the same with chosen tokens masked.
        mlm_labels: (L,) the masked ids, -100 elsewhere.
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
        is_empty, share = rng.random(2).tolist()
        k = int(share * len(text.word_starts))
        return PretrainingSample(
            ids=text.ids,
            masked_ids=masked_ids,
            mlm_labels=labels,
            cut=text.word_starts[k],
            wants_empty_prefix=is_empty < self.config.empty_prefix_probability,
            image_key=image_key(record),
            caption_key=text.key,
        )

    @property
    def is_led(self) -> bool:
        """Whether a sample decides if all prefixes are empty."""
        return self.config.empty_prefix_probability > 0

    def batch(self, samples: Sequence[PretrainingSample]) -> dict[str, Tensor]:
        """Join samples, of which the first decides whether prefixes are empty; see `led_batch`."""
        return self.led_batch(samples, samples[0])

    def led_batch(
        self, samples: Sequence[PretrainingSample], lead: PretrainingSample
    ) -> dict[str, Tensor]:
        """Join samples.

        Args:
            samples: Of this process.
            lead: Decides whether prefixes are empty.

        Returns:
            `token_ids`, `text_mask`, `mlm_token_ids`, `mlm_labels` (B, L); `prefix_token_ids`,
            `prefix_mask` (B, Lp); `target_token_ids`, `target_mask` (B, Lt); `image_key`,
            `caption_key` (B,) int64.
        """
        pad = self.tokenizer.pad
        token_ids, text_mask = pad([s.ids for s in samples])
        mlm_labels, _ = pad([s.mlm_labels for s in samples])
        cuts = [1] * len(samples) if lead.wants_empty_prefix else [s.cut for s in samples]
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


@dataclass(frozen=True, slots=True)
class MaskedTextSample:
    """One text, whole and masked.

    Attributes:
        ids: (L,) `[CLS] text [SEP]`.
        masked_ids: (L,) the same with chosen tokens masked.
        mlm_labels: (L,) the masked ids, -100 elsewhere.
    """

    ids: IdArray
    masked_ids: IdArray
    mlm_labels: IdArray


class MaskedTextCollator:
    """Encode texts as they are, lower-cased, and mask tokens; a record's caption is a text too.

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


class OneHiddenCollator:
    """Encode texts as they are, lower-cased, and hide each token in turn: a copy for each token.

    Args:
        tokenizer: Gives the ids.
        max_text_tokens: Longest text, [CLS] and [SEP] counted.
    """

    needs_boxes = False

    def __init__(self, tokenizer: Tokenizer, max_text_tokens: int) -> None:
        self.tokenizer = tokenizer
        self._texts = TextCache(tokenizer, max_text_tokens)

    def text_sample(self, record: Record, rng: np.random.Generator) -> IdArray:
        """Encode one text; a record's caption is a text too.

        Raises:
            SampleProblem: There is no text, or nothing is left of it.
        """
        return needed_text(record.text or record.caption, "text", record, self._texts).ids

    def batch(self, samples: Sequence[IdArray]) -> dict[str, Tensor]:
        """Join samples.

        Returns:
            `mlm_token_ids`, `mlm_labels`, `text_mask` (R, L), one row for each token of each text
            but [CLS] and [SEP]; `text_row` (R,) int64, the text that a row is of.
        """
        rows = [(n, place) for n, ids in enumerate(samples) for place in range(1, len(ids) - 1)]
        token_ids, text_mask = self.tokenizer.pad([samples[n] for n, _ in rows])
        places = torch.tensor([place for _, place in rows])[:, None]
        labels = torch.full_like(token_ids, IGNORE_INDEX)
        labels.scatter_(1, places, token_ids.gather(1, places))
        return {
            "mlm_token_ids": token_ids.scatter(1, places, self.tokenizer.mask_id),
            "mlm_labels": labels,
            "text_mask": text_mask,
            "text_row": torch.tensor([n for n, _ in rows]),
        }


@dataclass(frozen=True, slots=True)
class FLAVAPairSample:
    """One image and its caption.

    Attributes:
        image: What masking patches needs.
        ids: (L,) `[CLS] caption [SEP]`.
        masked_ids: (L,) the same with chosen tokens masked.
        mlm_labels: (L,) the masked ids, -100 elsewhere.
        is_swapped: Whether another caption of the batch takes the place of this one.
        partner: Which one, uniform in [0, 1).
        image_key: Key of the image.
        caption_key: Key of the caption.
    """

    image: MaskedImageSample
    ids: IdArray
    masked_ids: IdArray
    mlm_labels: IdArray
    is_swapped: bool
    partner: float
    image_key: int
    caption_key: int


class FLAVAPairCollator:
    """Mask patches and words of pairs, and swap some captions for ITM.

    A swapped caption is one of another image in the batch, and of another text. (Released code
    draws it from the whole data set.) Where the batch has none, the pair stays matched.

    Args:
        tokenizer: Gives the ids.
        captions: Lengths and probabilities.
        images: Masks patches and prepares their targets.
        swap_probability: Share of pairs whose caption is swapped.
    """

    needs_boxes = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        captions: PretrainingTextConfig,
        images: MaskedImageCollator,
        *,
        swap_probability: float = 0.1,
    ) -> None:
        check(0 <= swap_probability <= 1, "swap_probability", swap_probability, "be from 0 to 1")
        self.tokenizer, self.captions, self.images = tokenizer, captions, images
        self.swap_probability = swap_probability
        self._vocabulary = MaskingVocabulary.of(tokenizer)
        self._texts = TextCache(tokenizer, captions.max_text_tokens, self._clean)

    def _clean(self, caption: str) -> str:
        return clean_caption(caption, self.captions.max_words)

    @property
    def region_side(self) -> int:
        """That of the images."""
        return self.images.region_side

    def sample(
        self, record: Record, image: TransformedImage, rng: np.random.Generator
    ) -> FLAVAPairSample:
        """Mask one pair.

        Raises:
            SampleProblem: There is no caption, nothing is left of it, or codes are missing.
        """
        text = needed_text(record.caption, "caption", record, self._texts)
        config = self.captions
        masked_ids, labels = mask_tokens(
            text.ids, self._vocabulary, rng, config.mlm_probability, config.whole_word
        )
        swapped, partner = rng.random(2).tolist()
        return FLAVAPairSample(
            image=self.images.sample(record, image, rng),
            ids=text.ids,
            masked_ids=masked_ids,
            mlm_labels=labels,
            is_swapped=swapped < self.swap_probability,
            partner=partner,
            image_key=image_key(record),
            caption_key=text.key,
        )

    def batch(self, samples: Sequence[FLAVAPairSample]) -> dict[str, Tensor]:
        """Join samples.

        Returns:
            `hidden_patches` (B, P) and `codebook_image` or `image_codes`; `token_ids`,
            `text_mask`, `mlm_token_ids`, `mlm_labels` (B, L) of the captions that stand beside the
            images; `itm_labels` (B,), 0 where swapped; `image_key` of the images and
            `caption_key` of these captions (B,).
        """
        shown = [_shown(samples, index) for index in range(len(samples))]
        texts = [samples[index] for index in shown]
        token_ids, text_mask = self.tokenizer.pad([t.ids for t in texts])
        labels, _ = self.tokenizer.pad([t.mlm_labels for t in texts])
        return self.images.batch([s.image for s in samples]) | {
            "token_ids": token_ids,
            "text_mask": text_mask,
            "mlm_token_ids": self.tokenizer.pad([t.masked_ids for t in texts])[0],
            "mlm_labels": labels.masked_fill_(~text_mask, IGNORE_INDEX),
            "itm_labels": int_tensor(int(index == own) for own, index in enumerate(shown)),
            "image_key": int_tensor(s.image_key for s in samples),
            "caption_key": int_tensor(t.caption_key for t in texts),
        }


def _shown(samples: Sequence[FLAVAPairSample], index: int) -> int:
    """Return whose caption stands beside an image: its own, or for a swap another's."""
    own = samples[index]
    if not own.is_swapped:
        return index
    others = [
        number
        for number, other in enumerate(samples)
        if other.image_key != own.image_key and other.caption_key != own.caption_key
    ]
    return others[int(own.partner * len(others))] if others else index
