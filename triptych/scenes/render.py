"""Paint scenes: antialiased shapes on varied backgrounds, at any resolution."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import cv2
import numpy as np
from numpy.typing import NDArray

from triptych.scenes.world import OUTLINES, Scene, SceneObject

Image = NDArray[np.uint8]
Canvas = NDArray[np.float32]

_SUPERSAMPLE = 8  # sub-pixels a side: coverage in steps of 1/64
_SHIFT = 6  # fractional bits of OpenCV's polygon corners


_QUANTILES = np.array([NormalDist().inv_cdf((k + 0.5) / 256) for k in range(256)], dtype=np.float32)
_QUANTILES /= _QUANTILES.std()
"""256 equally likely values of a normal variable: several times faster than exact draws."""


def render_scene(scene: Scene, image_size: int, *, noise: float = 0.0) -> Image:
    """Paint one scene.

    Args:
        scene: What to paint; its `texture_seed` fixes background and noise.
        image_size: Side of the image, in pixels.
        noise: Standard deviation of the pixel noise, of 255.

    Returns:
        (image_size, image_size, 3) uint8, RGB.
    """
    rng = np.random.Generator(np.random.Philox(key=scene.texture_seed))
    canvas = paint_background(scene.background, image_size, rng)
    for item in scene.objects:
        paint_object(canvas, item)
    return finish(canvas, rng, noise)


def paint_background(kind: str, image_size: int, rng: np.random.Generator) -> Canvas:
    """Return a pale, nearly grey background of a kind from `world.BACKGROUNDS`.

    Returns:
        (image_size, image_size, 3) float32, of 255. Every channel lies within [150, 235] and
        differs from the others by at most 40, so that no background has the colour of an object.
    """
    random = rng.random(5 + 75, dtype=np.float32)
    base = 172 + 40 * random[0] + 20 * (random[1:4] - 0.5)
    if kind == "even":
        return np.full((image_size, image_size, 3), base, dtype=np.float32)
    if kind == "gradient":
        coarse, method = base + 24 * (random[5:17].reshape(2, 2, 3) - 0.5), cv2.INTER_LINEAR
    elif kind == "clouds":
        coarse, method = base + 20 * (random[5:80].reshape(5, 5, 3) - 0.5), cv2.INTER_LINEAR
    else:
        cells = 3 + int(random[4] * 5)
        parity = np.indices((cells, cells)).sum(axis=0) % 2
        coarse, method = base + (10 * parity[..., None] - 5), cv2.INTER_NEAREST
    size = (image_size, image_size)
    return np.asarray(cv2.resize(coarse.astype(np.float32), size, interpolation=method))


def paint_object(canvas: Canvas, item: SceneObject) -> None:
    """Blend one object over (S, S, 3) float32 `canvas`, in place, by exact pixel coverage."""
    found = _outlined(item, canvas.shape[0])
    if found is None:
        return
    rows, columns, fine = found
    patch = canvas[rows, columns]
    rgb = np.array(item.rgb, dtype=np.float32)
    _blend(patch, fine, rgb)
    if item.material == "striped":
        fine[_stripe_rows(fine.shape[0], item.radius * canvas.shape[0])] = 0
        _blend(patch, fine, 0.25 * rgb + np.float32(0.75 * 255))


def render_mask(scene: Scene, image_size: int, shapes: Sequence[str]) -> NDArray[np.uint8]:
    """Return what each pixel of a scene shows.

    Args:
        scene: What is painted.
        image_size: Side of the image, in pixels.
        shapes: Names of the shapes.

    Returns:
        (image_size, image_size) uint8: k where the k-th shape, from 1, covers half of the pixel or
        more; 0 for the background. Where two objects do, the one that is painted later shows.
    """
    mask = np.zeros((image_size, image_size), dtype=np.uint8)
    for item in scene.objects:
        found = _outlined(item, image_size)
        if found is not None:
            rows, columns, fine = found
            patch = mask[rows, columns]
            patch[_coverage(fine, patch.shape[1], patch.shape[0]) >= 128] = (
                shapes.index(item.shape) + 1
            )
    return mask


def _outlined(item: SceneObject, side: int) -> tuple[slice, slice, NDArray[np.uint8]] | None:
    """Return rows, columns and sub-pixels of an object, 255 inside; None outside the image."""
    half_width, half_height = item.half_extent
    left = max(int((item.x - half_width) * side) - 1, 0)
    top = max(int((item.y - half_height) * side) - 1, 0)
    right = min(int((item.x + half_width) * side) + 2, side)
    bottom = min(int((item.y + half_height) * side) + 2, side)
    width, height = right - left, bottom - top
    if width <= 0 or height <= 0:
        return None
    corner = np.array([item.x * side - left, item.y * side - top])
    corners = (OUTLINES[item.shape] * (item.radius * side) + corner) * _SUPERSAMPLE - 0.5
    fixed = np.rint(corners * (1 << _SHIFT)).astype(np.int32)
    fine = np.zeros((height * _SUPERSAMPLE, width * _SUPERSAMPLE), dtype=np.uint8)
    cv2.fillPoly(fine, [fixed], 255, cv2.LINE_8, _SHIFT)
    return slice(top, bottom), slice(left, right), fine


def finish(canvas: Canvas, rng: np.random.Generator, noise: float) -> Image:
    """Add noise with standard deviation `noise` and round (S, S, 3) float32 to uint8."""
    if noise:
        drawn = np.frombuffer(rng.bytes(canvas.size), dtype=np.uint8)
        canvas += (noise * _QUANTILES)[drawn].reshape(canvas.shape)
    return np.asarray(cv2.convertScaleAbs(np.maximum(canvas, 0, out=canvas)))


def _stripe_rows(num_rows: int, radius_px: float) -> NDArray[np.bool_]:
    """Return True for the rows of sub-pixels that keep their own colour: every second stripe."""
    period = radius_px * _SUPERSAMPLE * 0.56
    from_center = np.arange(num_rows) - (num_rows - 1) / 2
    keeps: NDArray[np.bool_] = np.floor(from_center / period + 0.25) % 2 == 0
    return keeps


def _blend(patch: Canvas, fine: Image, rgb: NDArray[np.float32]) -> None:
    height, width = patch.shape[:2]
    alpha = _coverage(fine, width, height).astype(np.float32)[..., None] / 255
    patch += alpha * (rgb - patch)


def _coverage(fine: Image, width: int, height: int) -> NDArray[np.uint8]:
    """Return how much of each pixel is covered, of 255."""
    return np.asarray(cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA))
