"""Images as data URIs, so that a page needs no other file."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from triptych.core.errors import DataError
from triptych.data.images import decode_image
from triptych.report.data import ImageSource

RGBArray = npt.NDArray[np.uint8]

MAX_SIDE_PX = 360
EXACT_SIDE_PX = 96
_JPEG_QUALITY = 88


def load_image(image: ImageSource) -> RGBArray:
    """Return an image as (H, W, 3) uint8 RGB.

    Raises:
        DataError: The file cannot be read, or the array is of another shape or type.
    """
    if isinstance(image, (str, Path)):
        return decode_image(Path(image))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"an image of a report is (H, W, 3) uint8, not {image.shape} {image.dtype}")
    return image


def encode_image(pixels: RGBArray, *, max_side_px: int = MAX_SIDE_PX, exact: bool = True) -> str:
    """Return a data URI: PNG for a small image, JPEG for others, shrunk to `max_side_px`.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        max_side_px: Longest side of what is written.
        exact: Whether an image of at most 96 px is written without loss.
    """
    image = Image.fromarray(pixels)
    longest = max(image.size)
    if longest > max_side_px:
        ratio = max_side_px / longest
        size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if exact and longest <= EXACT_SIDE_PX:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
