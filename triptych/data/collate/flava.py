"""Batches of pairs for FLAVA: hidden patches, hidden words, and some captions swapped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from triptych.core.config import check
from triptych.data.caption_cleaning import clean_caption
from triptych.data.collate.base import IdArray, TextCache, image_key, int_tensor, needed_text
from triptych.data.collate.image import MaskedImageCollator, MaskedImageSample
from triptych.data.collate.pretraining import PretrainingTextConfig
from triptych.data.masking import IGNORE_INDEX, MaskingVocabulary, mask_tokens
from triptych.data.records import Record
from triptych.data.transforms.pipeline import TransformedImage
from triptych.text import Tokenizer


@dataclass(frozen=True, slots=True)
class FLAVAPairSample:
    """One image and its caption.

    Attributes:
        image: What hiding patches needs.
        ids: (L,) `[CLS] caption [SEP]`.
        masked_ids: (L,) the same with chosen tokens hidden.
        mlm_labels: (L,) the hidden ids, -100 elsewhere.
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
    """Hide patches and words of pairs, and swap some captions for ITM.

    A swapped caption is one of another image in the batch, and of another text. (Released code
    draws it from the whole data set.) Where the batch has none, the pair stays matched.

    Args:
        tokenizer: Gives the ids.
        captions: Lengths and probabilities.
        images: Hides patches and prepares their targets.
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
        shown = [_shown(samples, place) for place in range(len(samples))]
        texts = [samples[place] for place in shown]
        token_ids, text_mask = self.tokenizer.pad([t.ids for t in texts])
        labels, _ = self.tokenizer.pad([t.mlm_labels for t in texts])
        return self.images.batch([s.image for s in samples]) | {
            "token_ids": token_ids,
            "text_mask": text_mask,
            "mlm_token_ids": self.tokenizer.pad([t.masked_ids for t in texts])[0],
            "mlm_labels": labels.masked_fill_(~text_mask, IGNORE_INDEX),
            "itm_labels": int_tensor(int(place == own) for own, place in enumerate(shown)),
            "image_key": int_tensor(s.image_key for s in samples),
            "caption_key": int_tensor(t.caption_key for t in texts),
        }


def _shown(samples: Sequence[FLAVAPairSample], place: int) -> int:
    """Return whose caption stands beside an image: its own, or for a swap another's."""
    own = samples[place]
    if not own.is_swapped:
        return place
    others = [
        number
        for number, other in enumerate(samples)
        if other.image_key != own.image_key and other.caption_key != own.caption_key
    ]
    return others[int(own.partner * len(others))] if others else place
