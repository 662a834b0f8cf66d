"""What a caller may pass: images of several kinds and texts, one or many."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from triptych.core.errors import DataError
from triptych.data.collate.base import TextCache
from triptych.data.collate.finetuning import append_words
from triptych.data.images import decode_image, decode_to_shrink
from triptych.data.records import ImageSource, is_encodable
from triptych.data.transforms.pipeline import ImageTransform, TransformedImage, normalise_batch
from triptych.data.transforms.randaugment import Pixels
from triptych.data.video import decode_frames, frame_positions
from triptych.text import Tokenizer

ImageInput = str | Path | ImageSource | Image.Image | NDArray[np.uint8] | TransformedImage
"""A path, a PIL image, or a uint8 array: (H, W, 3) RGB, (H, W, 4) RGBA, (H, W[, 1]) grey.

Also where a record's image lies, and what `Engine.prepare` made of an image.

A clip is a path with one of `CLIP_SUFFIXES`, or a uint8 array (F, H, W, 3) RGB.
"""

CLIP_SUFFIXES = frozenset(
    {".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
)

PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
TIFF_MODES = frozenset({"I", "F", "CMYK", "LAB", "I;16B"})


def read_image(image: object, name: str = "image") -> Pixels:
    """Return the upright RGB pixels of an image.

    Args:
        image: An `ImageInput`.
        name: What to call it in messages; a path is named itself.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ImageProblem: A file is missing, cut short or no image; the message names it.
        DataError: Another type, or an array of another shape or dtype.
    """
    if isinstance(image, (str, Path, ImageSource)):
        return decode_image(image)
    if isinstance(image, Image.Image):
        return decode_image(_lossless_bytes(image))
    if isinstance(image, np.ndarray):
        return _from_array(image, name)
    raise DataError(
        f"{name} is {type(image).__name__}: pass a path, a PIL image, or a uint8 array "
        "of height x width x 3 (RGB) or 4 (RGBA), or height x width (grey)"
    )


def transform_image(image: object, transform: ImageTransform, name: str) -> TransformedImage:
    """Return an image as the model takes it; of a very large file fewer pixels are decoded.

    Args:
        image: An `ImageInput` that is no clip.
        transform: Of evaluation.
        name: What to call it in messages; a path is named itself.

    Raises:
        DataError: It cannot be read.
    """
    if isinstance(image, TransformedImage):
        return image
    if isinstance(image, (str, Path, ImageSource)):
        pixels, (width, height) = decode_to_shrink(image)
        return replace(transform.apply(pixels), width=width, height=height)
    return transform.apply(read_image(image, name))


def is_clip(image: object) -> bool:
    """Return whether an input shows several frames."""
    if isinstance(image, np.ndarray):
        return image.ndim == 4
    return isinstance(image, (str, Path)) and Path(image).suffix.lower() in CLIP_SUFFIXES


def read_clip(clip: object, num_frames: int, name: str = "clip") -> Pixels:
    """Return evenly spread frames of a clip, (num_frames, H, W, 3) uint8 RGB.

    Args:
        clip: What `is_clip` says yes to.
        num_frames: How many frames.
        name: What to call it in messages; a path is named itself.

    Raises:
        ImageProblem: A file is missing, cut short or no clip; the message names it.
        DataError: An array of another shape or dtype, or PyAV is missing.
    """
    if not isinstance(clip, np.ndarray):
        return decode_frames(str(clip), num_frames)
    if clip.shape[3] != 3 or 0 in clip.shape:
        raise DataError(
            f"{name} is an array of shape {clip.shape}: pass frames x height x width x 3 (RGB)"
        )
    chosen = clip[frame_positions(len(clip), num_frames)]
    return np.stack([read_image(frame, name) for frame in chosen])


def prepare_images(
    images: Sequence[object], places: Sequence[int], transform: ImageTransform
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Read images, or clips, as a model wants them.

    Args:
        images: Each an `ImageInput`.
        places: Their numbers in messages.
        transform: Of evaluation.

    Returns:
        (B, 3, S, S) float32 of images or (B, F, 3, S, S) of clips; original widths and heights.

    Raises:
        DataError: One cannot be read, or images and clips are mixed.
    """
    check_one_kind(images)
    done, config = [], transform.config
    shows_clips = is_clip(images[0])
    for place, image in zip(places, images, strict=True):
        if shows_clips:
            frames = read_clip(image, config.num_frames, f"clip {place}")
            done += [transform.apply(frame) for frame in frames]
        else:
            done.append(transform_image(image, transform, f"image {place}"))
    batch = normalise_batch([item.pixels for item in done], config.mean, config.std)
    if shows_clips:
        batch = batch.view(len(images), -1, *batch.shape[1:])
    return batch, [(item.width, item.height) for item in done[:: len(done) // len(images)]]


def reject_clips(images: Sequence[object]) -> None:
    """Check that there are images alone.

    Raises:
        DataError: There is a clip.
    """
    for image in filter(is_clip, images):
        shown = image if isinstance(image, (str, Path)) else "an array of frames"
        raise DataError(f"{shown} is a clip, and this asks about images alone: pass a frame of it")


def check_one_kind(images: Sequence[object]) -> None:
    """Check that there are images alone, or clips alone.

    Raises:
        DataError: There are both.
    """
    if len({is_clip(image) for image in images}) > 1:
        raise DataError("images and clips are given together: ask about them in two calls")


def as_list(value: Any) -> tuple[list[Any], bool]:
    """Return a list, and whether one value was given instead of a list or tuple."""
    if isinstance(value, (list, tuple)):
        return list(value), False
    return [value], True


def broadcast(images: Any, texts: Any, what: str) -> tuple[list[Any], list[str], bool]:
    """Bring images and texts to one length.

    Args:
        images: One image, or many.
        texts: One text, or many.
        what: What the text is, for messages.

    Returns:
        Images and texts, one row a pair, and whether one of each was given.

    Raises:
        DataError: Two lists of unequal length.
    """
    image_list, one_image = as_list(images)
    text_list, one_text = as_list(texts)
    if one_image and not one_text:
        image_list = image_list * len(text_list)
    if one_text and not one_image:
        text_list = text_list * len(image_list)
    if len(image_list) != len(text_list):
        raise DataError(
            f"{len(image_list)} images and {len(text_list)} {what}s: give one {what} for each "
            "image, or one image, or one text"
        )
    return image_list, text_list, one_image and one_text


def check_texts(texts: Sequence[object], what: str) -> list[str]:
    """Return the texts.

    Raises:
        DataError: One is no string, or is empty.
    """
    for number, text in enumerate(texts):
        name = what if len(texts) == 1 else f"{what} {number}"
        if not isinstance(text, str):
            raise DataError(f"{name} is {type(text).__name__} {text!r}: pass a string")
        if not text.strip():
            raise DataError(f"{name} is empty: say something")
        if not is_encodable(text):
            raise DataError(f"{name} {text!r} holds broken characters (surrogates): write it again")
    return [str(text) for text in texts]


def append_seen_words(
    tokenizer: Tokenizer,
    ids: Sequence[Sequence[int]],
    ocr_words: str | Sequence[str] | None,
    object_words: str | Sequence[str] | None,
    max_tokens: int,
) -> list[list[int]]:
    """Append what OCR and a detector found to questions, as training does.

    Args:
        tokenizer: The model's tokenizer.
        ids: `[CLS] question [SEP]` of each question.
        ocr_words: One text a question, one for all, or None.
        object_words: Likewise.
        max_tokens: Longest result.

    Raises:
        DataError: Not as many texts as questions.
    """
    encode = TextCache(tokenizer, max_tokens)
    columns = []
    for name, words in (("ocr_words", ocr_words), ("object_words", object_words)):
        column = [words or ""] * len(ids) if words is None or isinstance(words, str) else words
        if len(column) != len(ids):
            raise DataError(f"{len(ids)} questions and {len(column)} {name}: give one for each")
        columns.append(column)
    return [
        append_words(encode, np.array(question), words, max_tokens).tolist()
        for question, *words in zip(ids, *columns, strict=True)
    ]


def pair_up(
    first: Any, second: Any, statements: Any
) -> tuple[list[Any], list[Any], list[str], bool]:
    """Bring first images, second images and statements to one length.

    Returns:
        The three, one row a statement, and whether one of each was given.

    Raises:
        DataError: Lists of unequal length.
    """
    firsts, one_first = as_list(first)
    seconds, one_second = as_list(second)
    if len(firsts) != len(seconds):
        raise DataError(
            f"{len(firsts)} first images and {len(seconds)} second ones: give one of each a pair"
        )
    pairs = list(range(len(firsts)))
    chosen: Any = 0 if one_first and one_second else pairs
    rows, said, single = broadcast(chosen, statements, "statement")
    return [firsts[row] for row in rows], [seconds[row] for row in rows], said, single


def _from_array(array: NDArray[Any], name: str) -> Pixels:
    if array.dtype != np.uint8:
        raise DataError(
            f"{name} is an array of {array.dtype}: pass uint8 values from 0 to 255 "
            "(for floats in [0, 1]: `(array * 255).round().astype('uint8')`)"
        )
    if 0 in array.shape:
        raise DataError(f"{name} is an array of shape {array.shape}: it holds no pixel")
    if array.ndim == 2:
        array = array[..., None]  # (H, W, 1)
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise DataError(
            f"{name} is an array of shape {array.shape}: pass height x width x 3 (RGB) or 4 "
            "(RGBA), or height x width (grey), and several images as a list"
        )
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    if array.shape[2] == 4:  # as a file with alpha
        return decode_image(_lossless_bytes(Image.fromarray(np.ascontiguousarray(array))))
    return np.ascontiguousarray(array)


def _lossless_bytes(image: Image.Image) -> bytes:
    """Encode a PIL image, so that the rules for files (alpha, depth, rotation) hold for it too."""
    exif = image.getexif()
    if image.mode not in PNG_MODES | TIFF_MODES:
        image = image.convert("RGBA" if image.mode.endswith(("A", "a")) else "RGB")
    buffer = io.BytesIO()
    if image.mode in PNG_MODES:
        image.save(buffer, "PNG", compress_level=1, exif=exif)
    else:
        image.save(buffer, "TIFF", exif=exif)
    return buffer.getvalue()


def chunks(total: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size` of `total` things."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def encode_plain(
    tokenizer: Tokenizer, texts: list[str], what: str, max_tokens: int, *, add_sep: bool = True
) -> list[list[int]]:
    """Return `[CLS] pieces [SEP]` of lower-cased texts, as training reads them.

    Raises:
        DataError: A text is empty, or holds no word.
    """
    plain = [" ".join(text.lower().split()) for text in check_texts(texts, what)]
    id_lists = tokenizer.encode(plain, max_tokens=max_tokens, add_sep=add_sep)
    for text, ids in zip(texts, id_lists, strict=True):
        if len(ids) < 2 + add_sep:
            raise DataError(f"{what} {text!r} holds no word that can be read: say it in words")
    return id_lists
