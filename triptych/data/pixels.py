"""Pixels that lie in a file without an image format: their shape, as PNG, and unpacked archives.

CIFAR, MNIST, STL-10, SVHN and others store arrays of pixels. A record names its slice of such a
file and how the pixels lie in it; the slice becomes a PNG, which loses nothing, when it is read.
So everything after it has encoded images alone. Of a compressed file no slice can be read: its
pixels are unpacked into the cache folder once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from triptych.core.errors import DataError
from triptych.core.files import placed
from triptych.data.cache import cache_folder, cache_key, log, one_at_a_time
from triptych.data.skips import ImageProblem, SkipKind

_LAYOUT = re.compile(r"(planes|pixels|columns|decimal) ([13])x(\d+)x(\d+)")


def pixel_layout(order: str, channels: int, height: int, width: int) -> str:
    """Return how a record says what shape its pixels have.

    Args:
        order: `planes` (C, H, W), `pixels` (H, W, C), `columns` (C, W, H), as MATLAB writes, or
            `decimal` (H, W, C) as text: numbers with spaces between them.
        channels: 1 (grey) or 3 (RGB).
        height: In pixels.
        width: In pixels.
    """
    return f"{order} {channels}x{height}x{width}"


def encode_pixels(data: bytes, layout: str, name: str) -> bytes:
    """Return the PNG of pixels.

    Args:
        data: One byte a channel and pixel, or the text of their numbers.
        layout: What `pixel_layout` returned.
        name: Of the image, for messages.

    Raises:
        DataError: The layout is none.
        ImageProblem: The pixels are not as many as the layout says, or not from 0 to 255.
    """
    import cv2  # here, since the command line reads records' module before any image

    found = _LAYOUT.fullmatch(layout)
    if found is None:
        raise DataError(f"{name}: {layout!r} is no layout of pixels, such as 'planes 3x32x32'")
    order, (channels, height, width) = found[1], map(int, found.groups()[1:])
    if order == "decimal":
        data = _parse_decimal(data, name)
    if len(data) != channels * height * width:
        message = f"{name}: holds {len(data)} values, {channels} x {height} x {width} are needed"
        raise ImageProblem(SkipKind.BAD_RECORD, message)
    flat = np.frombuffer(data, dtype=np.uint8)
    if order == "planes":
        rgb = flat.reshape(channels, height, width).transpose(1, 2, 0)
    elif order == "columns":
        rgb = flat.reshape(channels, width, height).transpose(2, 1, 0)
    else:
        rgb = flat.reshape(height, width, channels)
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    is_written, png = cv2.imencode(".png", bgr, (cv2.IMWRITE_PNG_COMPRESSION, 1))
    if not is_written:
        raise ImageProblem(SkipKind.NOT_AN_IMAGE, f"{name}: cannot be written as PNG")
    return png.tobytes()


def _parse_decimal(data: bytes, name: str) -> bytes:
    try:
        return bytes(map(int, data.split()))
    except ValueError as error:
        message = f"{name}: its pixels are not whole numbers from 0 to 255: {error}"
        raise ImageProblem(SkipKind.BAD_RECORD, message) from error


def unpacked(path: Path, part: str, read: Callable[[], Iterator[bytes]]) -> Path:
    """Return the file in the cache folder that holds a part of a compressed file.

    It is written once, and again when the compressed file has another size or time.

    Args:
        path: The compressed file.
        part: Which of its parts.
        read: Yields the part's bytes.

    Raises:
        DataError: The cache folder cannot be written, or what `read` raises.
    """
    facts = path.stat()
    key = cache_key([str(path.resolve()), facts.st_size, facts.st_mtime_ns, part])
    target = cache_folder() / "unpacked" / f"{path.name.split('.')[0]}-{key}.bin"
    try:
        with one_at_a_time(target.with_suffix(".lock"), f"unpacked copy of {path}"):
            if not target.is_file():
                log.info("%s: unpacking into %s", path, target)
                with placed(target) as temporary, temporary.open("wb") as copy:
                    copy.writelines(read())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be unpacked into {target.parent}: {error.strerror or error}. Name "
            "another folder with $TRIPTYCH_CACHE, or unpack the file yourself"
        ) from error
    return target
