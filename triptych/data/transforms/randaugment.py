"""RandAugment (Cubuk et al. 2019) with the ops and magnitudes of mPLUG's pre-training.

Images are (H, W, 3) uint8 RGB. Where a geometric op uncovers pixels they become `FILL`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

MAX_LEVEL = 10
APPLY_PROBABILITY = 0.5  # of each op that was drawn
FILL = (128, 128, 128)
ENHANCE_RANGE, ENHANCE_LEAST = 1.8, 0.1  # factor = M / 10 * 1.8 + 0.1
MAX_SHEAR = 0.3  # columns a row, at level 10
MAX_TRANSLATE_PX = 10.0  # at level 10, whatever the size of the image (released code)
MAX_ROTATE_DEGREES = 30.0  # at level 10

Op = Callable[[Pixels, float, float], Pixels]  # pixels, magnitude (0 to 10), sign (-1 or 1)

_LEVELS = np.arange(256, dtype=np.float64)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13


def identity(pixels: Pixels, magnitude: float, sign: float) -> Pixels:
    """Return the image as it is."""
    return pixels


def auto_contrast(pixels: Pixels, magnitude: float, sign: float) -> Pixels:
    """Stretch each channel so that its darkest value becomes 0 and its brightest 255."""
    return _per_channel(pixels, _stretch_table)


def equalize(pixels: Pixels, magnitude: float, sign: float) -> Pixels:
    """Spread each channel's values so that their histogram is as flat as it can be."""
    return _per_channel(pixels, _equalize_table)


def brightness(pixels: Pixels, magnitude: float, sign: float) -> Pixels:
    """Multiply by a factor from 0.1 (level 0) to 1.9 (level 10); 1.36 at level 7."""
    return _apply_table(pixels, _as_bytes(_LEVELS * _enhance_factor(magnitude)))


def sharpness(pixels: Pixels, magnitude: float, sign: float) -> Pixels:
    """Blend the smoothed image (factor 0) with itself (factor 1) and beyond; 1.36 at level 7.

    The outermost pixels are not smoothed.
    """
    factor = _enhance_factor(magnitude)
    smoothed = cv2.filter2D(pixels, -1, _SMOOTH)
    sharper = cv2.addWeighted(pixels, factor, smoothed, 1 - factor, 0.0)
    result = pixels.copy()
    result[1:-1, 1:-1] = sharper[1:-1, 1:-1]
    return result


def shear_x(pixels: Pixels, magnitude: float, sign: float) -> Pixels:
    """Shift each row right by its number times 0.3 at level 10 (±0.21 at level 7)."""
    amount = sign * magnitude / MAX_LEVEL * MAX_SHEAR
    return _warp(pixels, [[1, amount, 0], [0, 1, 0]])


def shear_y(pixels: Pixels, magnitude: float, sign: float) -> Pixels:
    """Shift each column down by its number times 0.3 at level 10 (±0.21 at level 7)."""
    amount = sign * magnitude / MAX_LEVEL * MAX_SHEAR
    return _warp(pixels, [[1, 0, 0], [amount, 1, 0]])


def translate_x(pixels: Pixels, magnitude: float, sign: float) -> Pixels:
    """Shift right (sign 1) or left by 10 pixels at level 10 (±7 at level 7)."""
    return _warp(pixels, [[1, 0, sign * magnitude / MAX_LEVEL * MAX_TRANSLATE_PX], [0, 1, 0]])


def translate_y(pixels: Pixels, magnitude: float, sign: float) -> Pixels:
    """Shift down (sign 1) or up by 10 pixels at level 10 (±7 at level 7)."""
    return _warp(pixels, [[1, 0, 0], [0, 1, sign * magnitude / MAX_LEVEL * MAX_TRANSLATE_PX]])


def rotate(pixels: Pixels, magnitude: float, sign: float) -> Pixels:
    """Turn about the centre, counter-clockwise for sign 1, by 30° at level 10 (±21° at level 7)."""
    angle = math.radians(sign * magnitude / MAX_LEVEL * MAX_ROTATE_DEGREES)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = (pixels.shape[1] - 1) / 2, (pixels.shape[0] - 1) / 2  # centre of the pixel grid
    return _warp(pixels, [[cos, sin, x - cos * x - sin * y], [-sin, cos, y + sin * x - cos * y]])


PHOTOMETRIC_OPS: tuple[Op, ...] = (identity, auto_contrast, equalize, brightness, sharpness)
GEOMETRIC_OPS: tuple[Op, ...] = (shear_x, shear_y, translate_x, translate_y, rotate)
ALL_OPS = PHOTOMETRIC_OPS + GEOMETRIC_OPS


def rand_augment(
    pixels: Pixels,
    rng: np.random.Generator,
    *,
    num_ops: int,
    magnitude: float,
    ops: Sequence[Op] = ALL_OPS,
) -> Pixels:
    """Draw `num_ops` ops with replacement and apply each with probability 0.5.

    Args:
        pixels: (H, W, 3) uint8.
        rng: Source of the choices.
        num_ops: How many ops are drawn (N).
        magnitude: Strength of all ops, 0 to 10 (M).
        ops: The ops to draw from.

    Returns:
        (H, W, 3) uint8; the input itself where no op was applied.
    """
    for which, applied, side in rng.random((num_ops, 3)).tolist():
        if applied < APPLY_PROBABILITY:
            pixels = ops[int(which * len(ops))](pixels, magnitude, 1.0 if side < 0.5 else -1.0)
    return pixels


def _enhance_factor(magnitude: float) -> float:
    return magnitude / MAX_LEVEL * ENHANCE_RANGE + ENHANCE_LEAST


def _as_bytes(values: NDArray[np.float64] | NDArray[np.int64]) -> Pixels:
    """Cut to 0..255 and drop the fraction."""
    return np.asarray(np.minimum(np.maximum(values, 0), 255), dtype=np.uint8)


def _apply_table(pixels: Pixels, table: Pixels) -> Pixels:
    return np.asarray(cv2.LUT(pixels, table), dtype=np.uint8)


def _per_channel(pixels: Pixels, table_of: Callable[[NDArray[np.int64]], Pixels | None]) -> Pixels:
    """Map each channel by a table made from its histogram; None leaves the channel as it is."""
    tables = np.empty((1, 256, 3), dtype=np.uint8)
    for channel in range(3):
        counts = cv2.calcHist([pixels], [channel], None, [256], [0, 256])
        table = table_of(counts.ravel().astype(np.int64))
        tables[0, :, channel] = _LEVELS if table is None else table
    return _apply_table(pixels, tables)


def _stretch_table(counts: NDArray[np.int64]) -> Pixels | None:
    present = np.flatnonzero(counts)
    low, high = int(present[0]), int(present[-1])
    if low == high:
        return None
    scale = 255.0 / (high - low)
    return _as_bytes(_LEVELS * scale - low * scale)


def _equalize_table(counts: NDArray[np.int64]) -> Pixels | None:
    """Return the table that maps a value to the share of darker pixels, as Pillow defines it."""
    present = np.flatnonzero(counts)
    step = int(counts.sum() - counts[present[-1]]) // 255
    if step == 0:
        return None
    darker = np.cumsum(counts) - counts
    return _as_bytes((darker + step // 2) // step)


def _warp(pixels: Pixels, matrix: list[list[float]]) -> Pixels:
    """Move pixels by a 2x3 matrix from old to new (column, row), bilinearly."""
    height, width = pixels.shape[:2]
    forward = np.array(matrix, dtype=np.float64)
    moved = cv2.warpAffine(
        pixels,
        forward,
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=FILL,
    )
    return np.asarray(moved, dtype=np.uint8)
