"""Encoded bytes to an upright RGB array, for any image that Pillow opens.

Plain JPEG goes through the decoders of `jpeg.py`, everything else through Pillow.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, UnidentifiedImageError

from triptych.core.config import check_range
from triptych.data.jpeg import JpegHeader, RGBArray, decode_plain_jpeg, read_jpeg_header
from triptych.data.records import ImageSource
from triptych.data.skips import ImageProblem, SkipKind

__all__ = ["ImageProblem", "RGBArray", "decode_image", "image_suffixes"]

# Pillow opens these only with a program or a plug-in beside it, or they are no images.
UNDECODED_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})

Factor = Callable[[int, int], int]
"""Given width and height of a whole upright JPEG, by what its sides may be divided: 1, 2, 4, 8."""

EXIF_ORIENTATION = 0x0112
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = frozenset({5, 6, 7, 8})
"""EXIF orientations whose upright image is as wide as the stored one is high."""

PIXELS_VARIABLE = "TRIPTYCH_MAX_IMAGE_PIXELS"
WHOLE_PIXELS = 89_478_485
"""Pillow's limit: up to so many pixels an image is always decoded whole."""
SHRUNK_PIXELS = 2**25
"""How many pixels a larger one may have once it is shrunk."""
LEAST_SIDE = 1024
"""Pixels of the shorter side that stay, so that what a model sees is still made by shrinking."""
MAX_PIXELS = 2**40
"""The highest limit that may be set."""
STRIP_PIXELS = 2**22
"""Pixels of an image of other kinds than RGB that are converted at a time."""

ALPHA_MODES = {"RGBA", "LA", "PA", "La", "RGBa"}
# Each format's magic bytes, and what a whole file has near its end.
END_MARKS = ((b"\xff\xd8\xff", b"\xff\xd9"), (b"\x89PNG\r\n\x1a\n", b"IEND"), (b"GIF8", b"\x3b"))


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of files that this Pillow decodes, in lower case: `.jpg`, `.tif`, ..."""
    return frozenset(
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in UNDECODED_FORMATS
    )


def max_image_pixels() -> int | None:
    """Return how many pixels an image may have: what `pixels_allowed` set, or Pillow's limit."""
    named = os.environ.get(PIXELS_VARIABLE)
    return int(named) if named else Image.MAX_IMAGE_PIXELS


@contextmanager
def pixels_allowed(limit: int | None) -> Iterator[None]:
    """Let images have up to so many pixels, in the block and in processes that start in it.

    Args:
        limit: Of an image; None changes nothing.

    Raises:
        ConfigError: It is below 1 or above `MAX_PIXELS`.
    """
    check_range("max_image_pixels", limit, 1, MAX_PIXELS)
    before = os.environ.get(PIXELS_VARIABLE)
    if limit is not None:
        os.environ[PIXELS_VARIABLE] = str(limit)
    try:
        yield
    finally:
        if limit is not None and before is None:
            del os.environ[PIXELS_VARIABLE]
        elif limit is not None and before is not None:
            os.environ[PIXELS_VARIABLE] = before


def decode_image(
    source: ImageSource | bytes | Path | str, *, max_pixels: int | None = None
) -> RGBArray:
    """Decode one image.

    Transparency is laid on white. 16-bit grey is scaled by 255 / 65535; 32-bit values are taken as
    0..1 (floats), 0..255 or 0..65535 where they fit, and stretched from their smallest to their
    largest otherwise. Of an animation the first frame is taken. The EXIF orientation is applied.
    Colour profiles are not.

    Args:
        source: Where the bytes lie, the bytes themselves, or a path.
        max_pixels: The most pixels that it may have; None is `max_image_pixels`.

    Returns:
        (H, W, 3) uint8, RGB, contiguous and writable.

    Raises:
        ImageProblem: The image is missing, cut short, no image, or has more pixels than are
            allowed; `kind` says which.
    """
    return _decode(source, max_pixels, may_shrink=False).pixels


def decode_to_shrink(
    source: ImageSource | bytes | Path | str, *, max_pixels: int | None = None
) -> tuple[RGBArray, tuple[int, int]]:
    """Decode an image that is made much smaller next, without all of its pixels in memory.

    Up to `WHOLE_PIXELS` the pixels are those of `decode_image`. A larger image comes at a half, a
    quarter or an eighth of its size, its shorter side never below `LEAST_SIDE`.

    Args:
        source: As for `decode_image`.
        max_pixels: As for `decode_image`.

    Returns:
        The pixels as `decode_image` gives them, and width and height of the whole upright image.

    Raises:
        ImageProblem: See `decode_image`.
    """
    found = _decode(source, max_pixels, may_shrink=True)
    return found.pixels, (found.width, found.height)


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image, whole or smaller.

    Attributes:
        pixels: (H, W, 3) uint8, RGB.
        width: Of the whole upright image.
        height: Of the whole upright image.
        factor: By what both sides were divided: 1, 2, 4 or 8. The last row and column may then
            stand for less than so many pixels.
        is_jpeg: Whether the factor was asked for.
    """

    pixels: RGBArray
    width: int
    height: int
    factor: int
    is_jpeg: bool


def decode_for_training(
    source: ImageSource | bytes | Path | str, factor: Factor, *, max_pixels: int | None = None
) -> Decoded:
    """Decode an image as `decode_to_shrink` does, and a JPEG also smaller as its size allows.

    libjpeg skips the high frequencies of each block, so a smaller JPEG costs little more than
    undoing its Huffman code, and is close to the mean of the pixels that it stands for.

    Args:
        source: As for `decode_image`.
        factor: Says what the sides of a JPEG may be divided by. Not called for other formats.
        max_pixels: As for `decode_image`.

    Raises:
        ImageProblem: See `decode_image`.
    """
    return _decode(source, max_pixels, may_shrink=True, of_jpeg=factor)


def _decode(
    source: ImageSource | bytes | Path | str,
    max_pixels: int | None,
    *,
    may_shrink: bool,
    of_jpeg: Factor | None = None,
) -> Decoded:
    if isinstance(source, bytes):
        data, name = source, "<bytes>"
    else:
        if not isinstance(source, ImageSource):
            source = ImageSource(str(source))
        data, name = source.read(), str(source)
    if not data:
        raise ImageProblem(SkipKind.TRUNCATED, f"{name}: is empty (0 bytes)")
    limit = max_image_pixels() if max_pixels is None else max_pixels
    header = read_jpeg_header(data)

    def factor_of(width: int, height: int) -> int:
        least = _shrinking(width, height) if may_shrink else 1
        return least if header is None or of_jpeg is None else max(least, of_jpeg(width, height))

    if header is not None:
        check_pixels(header.width, header.height, name, limit)
        if header.is_plain:
            width, height = header.width, header.height
            if header.orientation in SIDEWAYS:
                width, height = height, width
            factor = factor_of(width, height)
            stored = decode_plain_jpeg(data, header, factor)
            if stored is not None:
                pixels = _upright_array(stored, header.orientation)
                return Decoded(pixels, width, height, factor, is_jpeg=True)
    with quiet(limit):
        return _decode_with_pillow(data, name, header, limit, factor_of)


def _shrinking(width: int, height: int) -> int:
    """Return what an image is divided by where it is made smaller anyway: 1, 2, 4 or 8."""
    factor = 1
    while (
        factor < 8
        and width * height > (WHOLE_PIXELS if factor == 1 else SHRUNK_PIXELS * factor**2)
        and min(width, height) >= 2 * factor * LEAST_SIDE
    ):
        factor *= 2
    return factor


def _decode_with_pillow(
    data: bytes, name: str, header: JpegHeader | None, limit: int | None, factor_of: Factor
) -> Decoded:
    if header is not None and header.is_cut_and_padded:
        raise ImageProblem(SkipKind.TRUNCATED, f"{name}: the JPEG data ends in zeros")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            check_pixels(width, height, name, limit)
            is_sideways = header is not None and _orientation(image) in SIDEWAYS
            whole = factor = factor_of(*((height, width) if is_sideways else (width, height)))
            if factor > 1 and header is not None:
                image.draft(None, (width // factor, height // factor))  # in libjpeg, by 2, 4 or 8
                factor = max(1, factor * image.width // width)
            image.load()
            check_pixels(image.width, image.height, name, limit)  # formats of several sizes
            orientation = _orientation(image)
            if image.width * image.height <= STRIP_PIXELS and factor == 1:
                pixels = np.array(_upright(_to_rgb(image), orientation))
            else:
                pixels = _upright_array(_rgb_by_strips(image, factor), orientation)
            if orientation in SIDEWAYS:
                width, height = height, width
            return Decoded(pixels, width, height, whole, is_jpeg=header is not None)
    except ImageProblem:
        raise
    except Image.DecompressionBombError as error:
        raise ImageProblem(SkipKind.DECOMPRESSION_BOMB, f"{name}: {error}") from error
    except Exception as error:  # Pillow's plugins raise many kinds on broken bytes
        raise _problem(data, name, error) from error


def _rgb_by_strips(image: Image.Image, factor: int) -> RGBArray:
    """Return what `_to_rgb` does with a decoded image, a strip at a time: its copies stay small."""
    rows = max(1, STRIP_PIXELS // image.width // factor) * factor
    spread = None
    if image.mode.startswith(("I", "F")):
        spread = _spread_of(np.asarray(part) for part in _strips(image, rows))
    shape = (-(-image.height // factor), -(-image.width // factor), 3)
    pixels = np.empty(shape, dtype=np.uint8)
    for number, part in enumerate(_strips(image, rows)):
        strip = _to_rgb(part, spread)
        if factor > 1:
            strip = strip.reduce(factor)
        top = number * (rows // factor)
        pixels[top : top + strip.height] = np.asarray(strip)
    return pixels


def _strips(image: Image.Image, rows: int) -> Iterator[Image.Image]:
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def check_pixels(width: int, height: int, name: str, limit: int | None) -> None:
    """Raise an ImageProblem where an image claims more pixels than are allowed."""
    if limit is not None and width * height > limit:
        raise ImageProblem(
            SkipKind.DECOMPRESSION_BOMB,
            f"{name}: claims {width} x {height} pixels, more than the {limit} that are allowed; "
            "max_image_pixels allows more",
        )


def _problem(data: bytes, name: str, error: Exception) -> ImageProblem:
    """Return what an exception of Pillow means for these bytes."""
    unknown = isinstance(error, UnidentifiedImageError)  # its text names an object in memory
    if is_cut_short(data) or "truncated" in str(error).lower():
        why = "" if unknown else f": {error}"
        message = f"{name}: the file is cut short ({len(data)} bytes){why}"
        return ImageProblem(SkipKind.TRUNCATED, message)
    if unknown:
        message = f"{name}: no image that Pillow knows; it begins with {data[:12]!r}"
        return ImageProblem(SkipKind.NOT_AN_IMAGE, message)
    return ImageProblem(SkipKind.NOT_AN_IMAGE, f"{name}: cannot be decoded: {error}")


def is_cut_short(data: bytes) -> bool:
    """Return whether JPEG, PNG, GIF or WebP bytes lack their end. False for other formats."""
    for magic, end in END_MARKS:
        if data.startswith(magic):
            return end not in data[-64:]
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return len(data) < 8 + int(struct.unpack("<I", data[4:8])[0])
    return False


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where there is none or the block is broken."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # a broken EXIF block must not cost the image
        return 1
    return value if isinstance(value, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    transpose = TRANSPOSES.get(orientation)
    return image if transpose is None else image.transpose(transpose)


def _upright_array(pixels: RGBArray, orientation: int) -> RGBArray:
    """Return the pixels as `_upright` returns an image, without Pillow's four bytes a pixel."""
    if orientation in SIDEWAYS:
        pixels = pixels.transpose(1, 0, 2)
    flips_rows, flips_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    pixels = pixels[:: -1 if flips_rows else 1, :: -1 if flips_columns else 1]
    return np.ascontiguousarray(pixels)


def _to_rgb(image: Image.Image, spread: tuple[float, float] | None = None) -> Image.Image:
    """Return an image as RGB; `spread` is `_spread_of` the whole where this is a part."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        low, high = spread or _spread_of([values])
        return Image.fromarray(_scale_to_8_bits(values, low, high)).convert("RGB")
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # None only where the conversion is in place
        return converted
    return image.convert("RGB")


def _spread_of(parts: Iterable[npt.NDArray[np.generic]]) -> tuple[float, float]:
    """Return the 16- or 32-bit grey values that become 0 and 255, as `decode_image` states."""
    lows, highs, kind = [], [], "f"
    for values in parts:
        kind = values.dtype.kind
        if kind == "u" and values.dtype.itemsize == 2:
            return 0.0, 65535.0
        grey = _finite(values)
        lows.append(float(grey.min()))
        highs.append(float(grey.max()))
    low, high = min(lows), max(highs)
    if low >= 0 and high <= 65535:
        scales = (1.0, 255.0, 65535.0) if kind == "f" else (255.0, 65535.0)
        return 0.0, next(scale for scale in scales if high <= scale)
    return low, high


def _scale_to_8_bits(values: npt.NDArray[np.generic], low: float, high: float) -> RGBArray:
    scaled = (_finite(values) - low) * (255.0 / max(high - low, 1e-12))
    return np.rint(scaled).astype(np.uint8)


def _finite(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    return np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)


_quiet_lock = threading.Lock()
_quiet_depth = 0
_quiet_filters = warnings.catch_warnings()
_quiet_limit: int | None = None


@contextmanager
def quiet(limit: int | None) -> Iterator[None]:
    """Silence warnings while any thread decodes: what Pillow warns of is reported by kind.

    Pillow's own limit is raised as long, where ours is higher: it stops at twice its own, and looks
    at images within images, too.

    `warnings.catch_warnings` swaps filters of the whole process, so that two threads inside it
    could restore them in the wrong order; here the first in saves and the last out restores.
    """
    global _quiet_depth, _quiet_filters, _quiet_limit
    with _quiet_lock:
        if _quiet_depth == 0:
            _quiet_filters = warnings.catch_warnings()
            _quiet_filters.__enter__()
            warnings.simplefilter("ignore")
            _quiet_limit = Image.MAX_IMAGE_PIXELS
        known = Image.MAX_IMAGE_PIXELS
        is_higher = known is not None and (limit is None or limit > known)
        Image.MAX_IMAGE_PIXELS = limit if is_higher else known
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                _quiet_filters.__exit__(None, None, None)
                Image.MAX_IMAGE_PIXELS = _quiet_limit
