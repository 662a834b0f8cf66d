"""What all collators share: their protocol, encoded texts that are kept, and keys of content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.core.errors import DataError
from triptych.data.records import Record
from triptych.data.skips import SkipKind
from triptych.data.transforms.pipeline import TransformedImage
from triptych.text import Tokenizer

S = TypeVar("S")

IdArray = NDArray[np.int64]

MAX_CACHED_TEXTS = 200_000  # about 300 bytes each, in every process


class SampleProblem(DataError):  # noqa: N818 - one record's problem, mostly skipped, not raised
    """A record lacks what this kind of training needs; `kind` names it."""

    def __init__(self, kind: SkipKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Collator(Protocol[S]):
    """Makes samples of one kind from records, and batches from samples.

    Attributes:
        needs_boxes: Whether a box must be found again in the transformed image.
    """

    needs_boxes: bool

    def sample(self, record: Record, image: TransformedImage, rng: np.random.Generator) -> S:
        """Make one sample.

        Raises:
            SampleProblem: The record lacks a field that is needed.
        """
        ...

    def batch(self, samples: Sequence[S]) -> dict[str, Tensor]:
        """Join samples to tensors; all but the image and the index of the samples."""
        ...


@runtime_checkable
class TextCollator(Protocol[S]):
    """Makes samples of texts alone: no image is opened, and the batch has no `image`.

    Attributes:
        needs_boxes: False.
    """

    needs_boxes: bool

    def text_sample(self, record: Record, rng: np.random.Generator) -> S:
        """Make one sample.

        Raises:
            SampleProblem: The record lacks a field that is needed.
        """
        ...

    def batch(self, samples: Sequence[S]) -> dict[str, Tensor]:
        """Join samples to tensors; all but the index of the samples."""
        ...


@runtime_checkable
class LedCollator(Protocol):
    """A collator of which one sample decides something for the whole batch, of all processes.

    Attributes:
        is_led: Whether it does so, as configured.
    """

    @property
    def is_led(self) -> bool: ...  # noqa: D102

    def led_batch(self, samples: Sequence[Any], lead: Any) -> dict[str, Tensor]:
        """Join samples as `batch` does, where `lead` decides instead of the first of them."""
        ...


@runtime_checkable
class ViewCollator(Protocol):
    """A collator that makes views of its own from `TransformedImage.region`.

    Attributes:
        region_side: Least shorter side of the region in pixels, so that no view is enlarged which
            would not be from the whole image.
    """

    @property
    def region_side(self) -> int: ...  # noqa: D102


@runtime_checkable
class PairCollator(Protocol[S]):
    """Makes samples of two images: the batch's `image` is (B, 2, 3, S, S).

    Attributes:
        needs_boxes: False.
    """

    needs_boxes: bool

    def arrange(self, record: Record, rng: np.random.Generator) -> Record:
        """Return the record with `images` of length two in the order in which they are shown.

        Raises:
            SampleProblem: It has another number of images.
        """
        ...

    def pair_sample(self, record: Record, rng: np.random.Generator) -> S:
        """Make one sample of a record that `arrange` returned.

        Raises:
            SampleProblem: The record lacks a field that is needed.
        """
        ...

    def batch(self, samples: Sequence[S]) -> dict[str, Tensor]:
        """Join samples to tensors; all but the images and the index of the samples."""
        ...


AnyCollator = Collator[S] | TextCollator[S] | PairCollator[S]


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One text as token ids.

    Attributes:
        ids: (L,) int64, `[CLS] pieces [SEP]`.
        word_starts: For each word, the position of its first piece in `ids`.
        key: A 63-bit hash of the text, equal for equal texts.
    """

    ids: IdArray
    word_starts: tuple[int, ...]
    key: int


class TextCache:
    """Encode texts and keep them, since every epoch meets the same ones.

    Args:
        tokenizer: Gives the ids.
        max_tokens: Longest result, [CLS] and [SEP] counted.
        clean: Applied to a text first.
    """

    def __init__(
        self, tokenizer: Tokenizer, max_tokens: int, clean: Callable[[str], str] | None = None
    ) -> None:
        self._tokenizer, self._max_tokens, self._clean = tokenizer, max_tokens, clean
        self._known: dict[str, EncodedText] = {}

    def __call__(self, text: str) -> EncodedText:
        """Return the encoded text; `ids` has two entries where no piece is left."""
        found = self._known.get(text)
        if found is None:
            found = self._encode(text)
            if len(self._known) < MAX_CACHED_TEXTS:
                self._known[text] = found
        return found

    def _encode(self, text: str) -> EncodedText:
        cleaned = self._clean(text) if self._clean else " ".join(text.lower().split())
        pieces, starts = self._tokenizer.encode_words(cleaned)
        pieces = pieces[: self._max_tokens - 2]
        ids = np.array([self._tokenizer.cls_id, *pieces, self._tokenizer.sep_id], dtype=np.int64)
        kept = tuple(start + 1 for start in starts if start < len(pieces))
        return EncodedText(ids, kept, stable_key(cleaned))


def needed_text(text: str | None, field: str, record: Record, cache: TextCache) -> EncodedText:
    """Encode a text that the record must have.

    Raises:
        SampleProblem: The field is absent, or no token is left of it.
    """
    if text is None:
        message = f"record {record.record_id}: has no {field}"
        raise SampleProblem(SkipKind.MISSING_FIELD, message)
    encoded = cache(text)
    if len(encoded.ids) <= 2:
        message = f"record {record.record_id}: nothing is left of the {field} {text!r}"
        raise SampleProblem(SkipKind.EMPTY_CAPTION, message)
    return encoded


def text_batch(tokenizer: Tokenizer, ids: Sequence[IdArray]) -> dict[str, Tensor]:
    """Return texts padded to the longest: `token_ids`, `text_mask` (B, L)."""
    token_ids, text_mask = tokenizer.pad(ids)
    return {"token_ids": token_ids, "text_mask": text_mask}


def stable_key(text: str) -> int:
    """Return a hash in [0, 2^63) that is the same in every process and on every machine."""
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def image_key(record: Record) -> int:
    """Return the key of the record's image or clip: equal for records of one image.

    It is that of the place of the image, since ids of several sources may be equal: COCO's 42 is
    not Visual Genome's, and `00000/000` is in every WebDataset. Files to which one source gives the
    same `image_id` count as one image, that of the first.
    """
    image = record.first_image or record.image
    if image is not None:
        return stable_key(str(image))
    if record.video is not None:
        return stable_key(record.video)
    return stable_key(record.record_id if record.image_id is None else record.image_id)


def int_tensor(values: Iterable[int]) -> Tensor:
    """Return (B,) int64."""
    return torch.tensor(list(values), dtype=torch.int64)
