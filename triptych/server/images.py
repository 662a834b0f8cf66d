"""Images that clients send: measured before anything of them is decoded."""

from __future__ import annotations

import io

from PIL import Image

from triptych.core.errors import DataError
from triptych.data.images import RGBArray, decode_image
from triptych.data.skips import ImageProblem

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded; Pillow knows more, some of it by starting programs."""

MAX_SCANS = 100
"""Of a JPEG. Encoders write about ten; each decodes the whole image again."""

START_OF_SCAN = b"\xff\xda"
NAME_OF_BYTES = "<bytes>"
"""What `decode_image` calls an image without a file."""


def count_pixels(data: bytes, name: str) -> int:
    """Return width times height of an encoded image, by its header alone.

    Args:
        data: The encoded image.
        name: What to call it in messages.

    Raises:
        DataError: It is of no format in `FORMATS`, claims too many pixels, or too many scans.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            pixels, kind = int(image.width * image.height), image.format
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: claims more pixels than are allowed: {error}") from error
    except Exception as error:  # Pillow's plugins raise many kinds on broken bytes
        raise DataError(
            f"{name}: no image in {', '.join(FORMATS)}; it has {len(data)} bytes and begins with "
            f"{data[:12]!r}"
        ) from error
    if pixels < 1:
        raise DataError(f"{name}: holds no pixel")
    scans = data.count(START_OF_SCAN)
    if kind in ("JPEG", "MPO") and scans > MAX_SCANS:
        raise DataError(f"{name}: has {scans} scans, more than the {MAX_SCANS} that are allowed")
    return pixels


def decode(data: bytes, name: str) -> RGBArray:
    """Return the pixels (H, W, 3) uint8 of an encoded image.

    Args:
        data: The encoded image, measured by `count_pixels`.
        name: What to call it in messages.

    Raises:
        DataError: It cannot be decoded.
    """
    try:
        return decode_image(data)
    except ImageProblem as error:
        raise DataError(str(error).replace(NAME_OF_BYTES, name)) from error
