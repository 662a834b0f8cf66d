"""What the built-in world looks like: colours, shapes, sizes, splits."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from triptych.core.config import check

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 30, 36),
    "green": (28, 148, 56),
    "blue": (34, 66, 220),
    "yellow": (246, 226, 30),
    "purple": (140, 36, 170),
    "orange": (252, 130, 8),
    "cyan": (28, 200, 218),
    "black": (24, 24, 28),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "heart")
SIZES: tuple[str, ...] = ("small", "large")
MATERIALS: tuple[str, ...] = ("plain", "striped")
SPLITS: tuple[str, ...] = ("train", "val", "test", "compositional")

Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionMix:
    """How often each type of question is asked; weights, not shares.

    Chosen here so that the most frequent answer of each type is right for less than 0.45 of all.

    Attributes:
        yes_no: "is there a red circle?", "is the star small?", "is the star left of the cross?".
        count: "how many stars are there?".
        color: "what color is the star?".
        shape: "what shape is the red object?".
        material: "what material is the red star?"; asked only when materials are on.
        relation: "is the star left or right of the red cross?".
    """

    yes_no: float = 0.35
    count: float = 0.17
    color: float = 0.2
    shape: float = 0.16
    material: float = 0.15
    relation: float = 0.12

    def __post_init__(self) -> None:
        for name in self.__slots__:
            check(getattr(self, name) >= 0, name, getattr(self, name), "be at least 0")
        total = sum(getattr(self, name) for name in self.__slots__)
        check(total > 0, "question mix", self, "have a weight above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneConfig:
    """The built-in scenes. The defaults are our own, for images of 64 px.

    Attributes:
        seed: Seed of all random choices; the same seed gives the same scenes, words and pixels.
        image_size: Side of the square image, in pixels.
        object_count_weights: Relative frequency of 1, 2, 3 ... objects per image. Images with one
            object are rare, because their captions are often equal.
        colors: Names from `PALETTE`.
        shapes: Names from `SHAPES`.
        materials: Whether objects are plain or striped and captions say so; otherwise all are
            plain.
        small_diameter: Range of the diameter of small objects, relative to the image side.
        large_diameter: Range of the diameter of large objects, relative to the image side.
        min_center_distance: Smallest horizontal distance between two centres, relative to the image
            side, so that left and right are always visible.
        gap: Smallest space between the boxes of two objects, relative to the image side.
        repeat_probability: Probability that an object takes the colour or the shape of an earlier
            one, so that counts above one are common.
        num_held_out_pairs: Colour-shape pairs that appear only in the compositional split.
        color_jitter: Largest change of a colour channel from the palette, out of 255.
        noise: Standard deviation of the pixel noise, out of 255.
        plain_background: Whether every background is the same uniform grey.
        question_mix: How often each type of question is asked.
    """

    seed: int = 0
    image_size: int = 64
    object_count_weights: tuple[float, ...] = (0.1, 0.3, 0.3, 0.3)
    colors: tuple[str, ...] = tuple(PALETTE)
    shapes: tuple[str, ...] = SHAPES
    materials: bool = False
    small_diameter: tuple[float, float] = (0.1875, 0.21875)
    large_diameter: tuple[float, float] = (0.3125, 0.36)
    min_center_distance: float = 0.085
    gap: float = 0.016
    repeat_probability: float = 0.35
    num_held_out_pairs: int = 8
    color_jitter: int = 10
    noise: float = 4.0
    plain_background: bool = False
    question_mix: QuestionMix = field(default_factory=QuestionMix)

    def __post_init__(self) -> None:
        counts, colors, shapes = self.object_count_weights, self.colors, self.shapes
        check(self.image_size >= 16, "image_size", self.image_size, "be at least 16 pixels")
        ok = 1 <= len(counts) <= 8 and min(counts) >= 0 and sum(counts) > 0
        check(ok, "object_count_weights", counts, "hold 1 to 8 weights, one above 0")
        known = f"be at least two different names out of {list(PALETTE)}"
        check(_are_names(colors, tuple(PALETTE)), "colors", colors, known)
        known = f"be at least two different names out of {list(SHAPES)}"
        check(_are_names(shapes, SHAPES), "shapes", shapes, known)
        for name in ("small_diameter", "large_diameter"):
            low, high = getattr(self, name)
            check(0 < low <= high < 0.8, name, (low, high), "be a rising range within (0, 0.8)")
        disjoint = self.small_diameter[1] < self.large_diameter[0]
        check(disjoint, "small_diameter", self.small_diameter, "end below large_diameter")
        num_pairs, held_out = len(colors) * len(shapes), self.num_held_out_pairs
        must = f"be within 0 and {num_pairs // 2}, half of the colour-shape pairs"
        check(0 <= held_out <= num_pairs // 2, "num_held_out_pairs", held_out, must)
        most = 2 * (num_pairs - held_out)
        must = f"allow at most {most} objects, the number of different ones in training"
        check(len(counts) <= most, "object_count_weights", counts, must)
        repeat = self.repeat_probability
        check(0 <= repeat < 1, "repeat_probability", repeat, "be within 0 and below 1")
        check(self.noise >= 0, "noise", self.noise, "be at least 0")
        check(0 <= self.color_jitter <= 30, "color_jitter", self.color_jitter, "be within 0 and 30")


def _are_names(names: tuple[str, ...], known: tuple[str, ...]) -> bool:
    return len(names) >= 2 and len(set(names)) == len(names) and set(names) <= set(known)


@lru_cache(maxsize=32)
def held_out_pairs(config: SceneConfig) -> tuple[Pair, ...]:
    """Return the (colour, shape) pairs that only the compositional split shows.

    They run along the diagonals of the colour-shape table, so that every colour and every shape
    stays common in training. They do not depend on the seed.
    """
    colors, shapes = config.colors, config.shapes
    diagonal = [
        (color, shapes[(row + shift) % len(shapes)])
        for shift in range(len(shapes))
        for row, color in enumerate(colors)
    ]
    return tuple(diagonal[: config.num_held_out_pairs])


@lru_cache(maxsize=128)
def pairs_of_split(config: SceneConfig, split: str) -> tuple[Pair, ...]:
    """Return the (colour, shape) pairs that images and words of a split may use."""
    check(split in SPLITS, "split", split, f"be one of {list(SPLITS)}")
    every = tuple((color, shape) for color in config.colors for shape in config.shapes)
    if split == "compositional":
        return every
    hidden = set(held_out_pairs(config))
    return tuple(pair for pair in every if pair not in hidden)
