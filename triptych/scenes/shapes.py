"""Outlines of the shapes, as polygons around the centre of their own box."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from triptych.scenes.config import SHAPES

Polygon = NDArray[np.float64]


def _circle() -> Polygon:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _square() -> Polygon:
    return 0.88 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=np.float64)


def _triangle() -> Polygon:
    return np.array([[0.0, -0.95], [1.05, 0.95], [-1.05, 0.95]])


def _star() -> Polygon:
    angle = np.linspace(0, 2 * np.pi, 10, endpoint=False) - np.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, 1.12, 0.47)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _cross() -> Polygon:
    arm, thick = 1.0, 0.33
    half = [[thick, -arm], [thick, -thick], [arm, -thick]]
    half += [[x, -y] for x, y in reversed(half)]
    return np.array(half + [[-x, -y] for x, y in half])


def _heart() -> Polygon:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], axis=1) / 16 * 1.05


def _centered(points: Polygon) -> Polygon:
    middle: Polygon = (points.min(axis=0) + points.max(axis=0)) / 2
    return points - middle


_DRAWN = (_circle(), _square(), _triangle(), _star(), _cross(), _heart())
OUTLINES: dict[str, Polygon] = {name: _centered(points) for name, points in zip(SHAPES, _DRAWN)}
"""(K, 2) corners x, y in units of the radius; the box of each is centred on the origin."""

HALF_EXTENT: dict[str, tuple[float, float]] = {
    name: (float(points[:, 0].max()), float(points[:, 1].max()))
    for name, points in OUTLINES.items()
}
"""Half width and half height of the box, in units of the radius."""
