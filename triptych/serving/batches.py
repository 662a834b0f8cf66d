"""From what a caller passes to what a model reads: images a part at a time, and texts as tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from triptych.core.errors import DataError
from triptych.data.caption_cleaning import clean_caption
from triptych.data.collate.base import IdArray, TextCache
from triptych.data.collate.classification import join_pair
from triptych.data.storage import RemoteError
from triptych.data.transforms.pipeline import ImageTransform
from triptych.serving.inputs import (
    check_one_kind,
    check_texts,
    chunks,
    encode_plain,
    is_clip,
    prepare_images,
)
from triptych.serving.loading import LoadedModel
from triptych.tasks.finetuning.base import ModelTask

IMAGES_PER_PASS = 32
T = TypeVar("T")
Ids = Sequence[int] | IdArray

OnError = Literal["raise", "skip"] | Callable[[int, DataError], None]
"""What is done about an image that cannot be used.

"raise" ends the call. "skip" logs it and goes on: the answer is None, and of embeddings a row of
NaN. A function does so too, but is called with the image's place in the call and the error.
"""

log = logging.getLogger("triptych")


def tell_skipped(on_error: OnError, place: int, error: DataError) -> None:
    """Tell of an image that is skipped: call a function, or log it."""
    if callable(on_error):
        on_error(place, error)
    else:
        log.warning("skipped: %s", error)


class Images:
    """The images of one call, read a part at a time; those that are skipped are remembered.

    Args:
        loaded: Says how images are prepared, and where the model computes.
        transform: Of evaluation.
        images: Each an `ImageInput`.
        on_error: What is done about one that cannot be used.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        transform: ImageTransform,
        images: Sequence[Any],
        on_error: OnError = "raise",
    ) -> None:
        self._loaded, self._transform = loaded, transform
        self._images, self._on_error = images, on_error
        self.skipped: dict[int, DataError] = {}

    def prepared(self, places: Sequence[int]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Return what `prepare_images` does, on the device; black images in place of skipped ones.

        Raises:
            DataError: One cannot be read, or images and clips are mixed.
        """
        part = [self._images[place] for place in places]
        try:
            batch, sizes = prepare_images(part, places, self._transform)
        except DataError as error:
            if self._on_error == "raise" or isinstance(error, RemoteError):
                raise  # a URL that fails is nobody's bad image
            part = [self._usable(*pair) for pair in zip(part, places, strict=True)]
            batch, sizes = prepare_images(part, places, self._transform)
        return batch.to(self._loaded.device), sizes

    def _usable(self, image: Any, place: int) -> Any:
        """Return an image, or a black one in its place where it cannot be used."""
        try:
            prepare_images([image], [place], self._transform)
        except DataError as error:
            self._skip(place, error)
            return np.zeros((1, 1, 1, 3) if is_clip(image) else (1, 1, 3), np.uint8)
        return image

    def _skip(self, place: int, error: DataError) -> None:
        self.skipped[place] = error
        tell_skipped(self._on_error, place, error)

    def distinct(self, rows: slice) -> tuple[list[int], list[int]]:
        """Return the first place of each image among `rows`, and which of these each row shows.

        Rows that hold the same object show the same image.

        Raises:
            DataError: Images and clips are mixed.
        """
        check_one_kind(self._images[rows])
        places: dict[int, int] = {}
        for place in range(rows.start, rows.stop):
            places.setdefault(id(self._images[place]), place)
        numbers = {key: number for number, key in enumerate(places)}
        return list(places.values()), [numbers[id(image)] for image in self._images[rows]]

    def share(self, places: Sequence[int], rows: slice, index: Sequence[int]) -> None:
        """Skip the rows that show an image which was skipped at its first place.

        Args:
            places: First places, of `distinct`.
            rows: The rows.
            index: Which of the places each row shows, of `distinct`.
        """
        for row, number in enumerate(index, rows.start):
            error = self.skipped.get(places[number])
            if error is not None and row not in self.skipped:
                self._skip(row, error)

    def parts(self) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Yield places, and what `predict` of a task reads of the images there."""
        for rows in chunks(len(self._images), IMAGES_PER_PASS):
            image, sizes = self.prepared(range(rows.start, rows.stop))
            index = torch.arange(len(image))
            yield rows, {"image": image, "image_size_px": torch.tensor(sizes), "index": index}

    def result(self, found: list[T], single: bool) -> T | list[T]:
        """Return answers with None where an image was skipped; the one answer of a single image.

        Only who asked for None meets one, so that the types of all others stay without it.
        """
        told: list[Any] = list(found)
        for place in self.skipped:
            told[place] = None
        return told[0] if single else told


class Texts:
    """Texts as a model's training read them.

    Args:
        loaded: Has the tokenizer and the longest texts.
        classifier: Says the longest texts that it reads, if there is one that reads any.
    """

    def __init__(self, loaded: LoadedModel, classifier: ModelTask[Any] | None = None) -> None:
        self._loaded, self._limits = loaded, loaded.settings.limits
        config = getattr(classifier, "config", None)
        self._classified_tokens: int = getattr(config, "max_text_tokens", 0)

    def prompt(self, prompt: str) -> list[int]:
        """Encode the words that a caption begins with, without [CLS] and [SEP]."""
        return self._encode([prompt], "prompt", self._limits.caption, add_sep=False)[0][1:]

    def captions(self, texts: list[str]) -> list[list[int]]:
        """Encode texts to match or embed, cleaned as training cleans captions."""
        limits = self._limits
        cleaned = [clean_caption(text, limits.max_words) for text in check_texts(texts, "text")]
        return self._encode(cleaned, "text", limits.caption)

    def questions(self, texts: list[str]) -> list[list[int]]:
        """Encode questions."""
        return self._encode(texts, "question", self._limits.question)

    def phrases(self, texts: list[str]) -> list[list[int]]:
        """Encode phrases to ground."""
        return self._encode(texts, "phrase", self._limits.phrase)

    def classified(self, texts: Sequence[str], what: str) -> list[IdArray]:
        """Encode texts as the training of a classifier does.

        Raises:
            DataError: A text is empty, or holds no word.
        """
        encode = TextCache(self._loaded.tokenizer, self._classified_tokens)
        found = [encode(text).ids for text in check_texts(list(texts), what)]
        for text, ids in zip(texts, found, strict=True):
            if len(ids) <= 2:
                raise DataError(f"{what} {text!r} holds no word that can be read: say it in words")
        return found

    def joined(self, first: Sequence[IdArray], second: Sequence[IdArray]) -> list[IdArray]:
        """Return pairs of texts as the training of a classifier joins them."""
        pairs = zip(first, second, strict=True)
        return [join_pair(*pair, self._classified_tokens) for pair in pairs]

    def padded(self, ids: Sequence[Ids]) -> dict[str, Tensor]:
        """Return texts of one length, (B, L), and which of their tokens are real, on the device."""
        token_ids, text_mask = self._loaded.tokenizer.pad(ids)
        device = self._loaded.device
        return {"token_ids": token_ids.to(device), "text_mask": text_mask.to(device)}

    def _encode(
        self, texts: list[str], what: str, max_tokens: int, *, add_sep: bool = True
    ) -> list[list[int]]:
        return encode_plain(self._loaded.tokenizer, texts, what, max_tokens, add_sep=add_sep)
