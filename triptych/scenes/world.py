"""Scenes: shapes and where they are, drawn from a seed; and the relations between objects."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.core.errors import ConfigError
from triptych.scenes.config import (
    MATERIALS,
    PALETTE,
    SHAPES,
    SIZES,
    Pair,
    SceneConfig,
    held_out_pairs,
    pairs_of_split,
)

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


BACKGROUNDS: tuple[str, ...] = ("even", "gradient", "clouds", "checks")
CLEAR_DISTANCE = 0.1
"""Least vertical distance of two centres, as a share of the side, for above or below to be said."""

_PLACE_TRIES, _LAYOUT_TRIES = 25, 400


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object. Lengths are shares of the side of the image, y points down.

    Attributes:
        size: "small" or "large".
        color: Name of the colour.
        shape: Name of the shape.
        material: "plain" or "striped".
        x: Horizontal position of the centre of its box.
        y: Vertical position of the centre of its box.
        radius: Half of the diameter.
        rgb: The exact colour, each channel of 255.
    """

    size: str
    color: str
    shape: str
    material: str
    x: float
    y: float
    radius: float
    rgb: tuple[int, int, int]

    @property
    def pair(self) -> Pair:
        """Colour and shape."""
        return self.color, self.shape

    @property
    def kind(self) -> tuple[str, str, str]:
        """Size, colour and shape; two objects of a scene never share all three."""
        return self.size, self.color, self.shape

    @property
    def half_extent(self) -> tuple[float, float]:
        """Half width and half height of the box, as shares of the side."""
        width, height = HALF_EXTENT[self.shape]
        return width * self.radius, height * self.radius

    def box(self, image_size: int) -> tuple[float, float, float, float]:
        """Return the box as x, y, width, height in pixels of an image with this side."""
        half_width, half_height = self.half_extent
        left, top = self.x - half_width, self.y - half_height
        in_pixels = (image_size * v for v in (left, top, 2 * half_width, 2 * half_height))
        x, y, width, height = (round(v, 2) for v in in_pixels)
        return x, y, width, height


@dataclass(frozen=True, slots=True)
class Scene:
    """One image before it is painted.

    Attributes:
        split: "train", "val", "test" or "compositional".
        index: Position in the split, from 0.
        series: Tells apart independent sets of scenes in one split; "" for the images.
        objects: From left to right by centre.
        background: One of `BACKGROUNDS`.
        texture_seed: Seeds the colours of the background and the pixel noise.
    """

    split: str
    index: int
    series: str
    objects: tuple[SceneObject, ...]
    background: str
    texture_seed: int

    def as_dict(self, image_size: int) -> dict[str, Any]:
        """Return the ground truth as JSON values, with a pixel box for each object."""
        plain = asdict(self)
        for entry, item in zip(plain["objects"], self.objects):
            entry["box"] = item.box(image_size)
        return plain


def scene_random(config: SceneConfig, split: str, index: int, purpose: str) -> random.Random:
    """Return the generator for one purpose about one scene; generators never share a stream."""
    return random.Random(f"{config.seed}/{split}/{index}/{purpose}")


def generate_scene(
    config: SceneConfig,
    split: str,
    index: int,
    *,
    series: str = "",
    num_objects: int | None = None,
) -> Scene:
    """Draw one scene; it depends on its arguments alone.

    Args:
        config: The world.
        split: Decides which colour-shape pairs may occur. A compositional scene holds at least
            one pair that no other split shows.
        index: Position in the split.
        series: Name of an independent set of scenes.
        num_objects: Fixes the number of objects; None draws it.

    Raises:
        ConfigError: The objects are too large, or too many, to be placed apart.
    """
    rng = scene_random(config, split, index, f"scene{series}")
    if num_objects is None:
        weights = config.object_count_weights
        num_objects = rng.choices(range(1, len(weights) + 1), weights)[0]
    kinds = _draw_kinds(config, split, num_objects, rng)
    objects = _place(config, kinds, rng)
    background = "even" if config.plain_background else rng.choice(BACKGROUNDS)
    ordered = tuple(sorted(objects, key=lambda item: item.x))
    return Scene(split, index, series, ordered, background, rng.getrandbits(62))


def is_left_of(first: SceneObject, second: SceneObject) -> bool:
    """Return whether the centre of `first` lies left of that of `second`."""
    return first.x < second.x


def is_above(first: SceneObject, second: SceneObject) -> bool:
    """Return whether `first` lies clearly above `second`."""
    return first.y <= second.y - CLEAR_DISTANCE


def differ_in_height(first: SceneObject, second: SceneObject) -> bool:
    """Return whether one of the two lies clearly above the other."""
    return abs(first.y - second.y) >= CLEAR_DISTANCE


def _draw_kinds(
    config: SceneConfig, split: str, count: int, rng: random.Random
) -> list[tuple[str, str, str]]:
    """Draw `count` different (size, colour, shape) triples."""
    allowed = pairs_of_split(config, split)
    hidden = held_out_pairs(config) if split == "compositional" else ()
    if split == "compositional" and not hidden:
        raise ConfigError("num_held_out_pairs = 0: the compositional split needs at least 1")
    kinds: list[tuple[str, str, str]] = []
    while len(kinds) < count:
        choices = hidden if hidden and not kinds else allowed
        if kinds and rng.random() < config.repeat_probability:
            part = rng.randrange(2)
            value = rng.choice(kinds)[1 + part]
            choices = tuple(pair for pair in allowed if pair[part] == value)
        color, shape = rng.choice(choices)
        kind = (rng.choice(SIZES), color, shape)
        if kind not in kinds:
            kinds.append(kind)
    return kinds


def _place(
    config: SceneConfig, kinds: list[tuple[str, str, str]], rng: random.Random
) -> list[SceneObject]:
    """Give each object a place of its own, the large ones first."""
    ranges = {"small": config.small_diameter, "large": config.large_diameter}
    radii = [rng.uniform(*ranges[size]) / 2 for size, _, _ in kinds]
    order = sorted(range(len(kinds)), key=lambda i: -radii[i])
    extents = [
        (HALF_EXTENT[kinds[i][2]][0] * radii[i], HALF_EXTENT[kinds[i][2]][1] * radii[i])
        for i in order
    ]
    for _ in range(_LAYOUT_TRIES):
        spots = _try_layout(config, extents, rng)
        if spots:
            return [_finish(config, kinds[i], radii[i], spot, rng) for i, spot in zip(order, spots)]
    raise ConfigError(
        f"cannot place {len(kinds)} objects apart in one image: lower large_diameter = "
        f"{config.large_diameter}, min_center_distance or the number of objects"
    )


def _try_layout(
    config: SceneConfig, extents: list[tuple[float, float]], rng: random.Random
) -> list[tuple[float, float]] | None:
    """Drop boxes one after another; None when one finds no room."""
    gap, apart, uniform = config.gap, config.min_center_distance, rng.random
    spots: list[tuple[float, float]] = []
    for half_width, half_height in extents:
        for _ in range(_PLACE_TRIES):
            x = gap + half_width + uniform() * (1 - 2 * (gap + half_width))
            y = gap + half_height + uniform() * (1 - 2 * (gap + half_height))
            for (other_x, other_y), (other_w, other_h) in zip(spots, extents):
                dx = abs(x - other_x)
                touches = dx < half_width + other_w + gap
                if dx < apart or (touches and abs(y - other_y) < half_height + other_h + gap):
                    break
            else:
                spots.append((x, y))
                break
        else:
            return None
    return spots


def _finish(
    config: SceneConfig,
    kind: tuple[str, str, str],
    radius: float,
    spot: tuple[float, float],
    rng: random.Random,
) -> SceneObject:
    size, color, shape = kind
    jitter = config.color_jitter
    red, green, blue = (
        min(255, max(0, channel + rng.randint(-jitter, jitter))) for channel in PALETTE[color]
    )
    material = rng.choice(MATERIALS) if config.materials else "plain"
    return SceneObject(size, color, shape, material, *spot, radius, (red, green, blue))
