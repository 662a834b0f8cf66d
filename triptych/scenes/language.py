"""Captions, phrases and class labels of a scene, and how much of it a caption names."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from triptych.scenes.config import MATERIALS, PALETTE, SHAPES, SIZES, SceneConfig
from triptych.scenes.world import Scene, SceneObject, differ_in_height, is_above, is_left_of

Named = tuple[str, str, str]

_SLOTS = ("size", "color", "shape")  # enough to tell any two objects apart
_NAMED = re.compile(
    rf"\b({'|'.join(SIZES)})\s+(?:(?:{'|'.join(MATERIALS)})\s+)?"
    rf"({'|'.join(PALETTE)})\s+({'|'.join(SHAPES)})\b"
)


@dataclass(frozen=True, slots=True)
class Phrase:
    """A referring phrase and the one object that it fits.

    Attributes:
        text: The phrase.
        target: Position of the object in `scene.objects`.
    """

    text: str
    target: int


def name_object(item: SceneObject, *, with_material: bool = False) -> str:
    """Return the full name of an object, such as "small red circle"."""
    material = f"{item.material} " if with_material else ""
    return f"{item.size} {material}{item.color} {item.shape}"


def join_names(names: list[str]) -> str:
    """Join with commas and a last "and"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def caption_scene(scene: Scene, config: SceneConfig, phrasing: int) -> str:
    """Return a caption that names every object from left to right.

    Args:
        scene: What to describe.
        config: Whether materials are said.
        phrasing: Which of the phrasings, modulo their number.
    """
    named = [f"a {name_object(item, with_material=config.materials)}" for item in scene.objects]
    listed = join_names(named)
    phrasings = [listed, f"there is {listed}", f"a picture of {listed}"]
    if len(named) > 1:
        phrasings.append(f"from left to right: {listed}")
    return phrasings[phrasing % len(phrasings)]


def caption_variants(
    scene: Scene, config: SceneConfig, count: int, rng: random.Random
) -> list[str]:
    """Return `count` captions in phrasings that differ as far as there are enough."""
    first = rng.randrange(4)
    return [caption_scene(scene, config, first + step) for step in range(count)]


def objects_named(caption: str) -> list[Named]:
    """Return the (size, colour, shape) of each object that a caption names, in its order."""
    return [match.groups() for match in _NAMED.finditer(caption.lower())]  # type: ignore[misc]


def class_label(item: SceneObject) -> str:
    """Return the name of the class of an object: "red_circle"."""
    return f"{item.color}_{item.shape}"


def describe(
    scene: Scene, item: SceneObject, rng: random.Random, *, avoid: frozenset[str] = frozenset()
) -> str | None:
    """Return a short description that fits this object of the scene and no other.

    Args:
        scene: The scene.
        item: One of its objects.
        rng: Chooses among the shortest descriptions and one that is a word longer.
        avoid: Attributes that may not be said, out of "size", "color", "shape".

    Returns:
        A description without article, such as "red circle" or "small object"; None if the
        attributes left do not single the object out.
    """
    shortest: int | None = None
    found: list[str] = []
    for slots in _slot_sets(avoid):
        if shortest is not None and len(slots) > shortest + 1:
            break
        if sum(_agree(other, item, slots) for other in scene.objects) == 1:
            shortest = len(slots) if shortest is None else shortest
            found.append(_say(item, slots))
    return rng.choice(found) if found else None


def refer(scene: Scene, rng: random.Random) -> Phrase:
    """Return a phrase that fits exactly one object of the scene.

    Three in five phrases say attributes ("the red circle"), one in five a place ("the leftmost
    object"), one in five a relation ("the circle left of the blue square"); where a place or a
    relation would not single out the object, attributes do.
    """
    target = rng.randrange(len(scene.objects))
    way = rng.random() if len(scene.objects) > 1 else 0.0
    said = None
    if 0.6 <= way < 0.8:
        said = _say_place(scene, target)
    elif way >= 0.8:
        said = _say_relation(scene, target, rng)
    return Phrase(f"the {said or describe(scene, scene.objects[target], rng)}", target)


def refer_variants(scene: Scene, count: int, rng: random.Random) -> list[Phrase]:
    """Return 1 to `count` different referring phrases of one scene."""
    phrases: dict[str, Phrase] = {}
    for _ in range(6 * count):
        phrase = refer(scene, rng)
        phrases.setdefault(phrase.text, phrase)
        if len(phrases) == count:
            break
    return list(phrases.values())


def fits(item: SceneObject, *, color: str | None = None, shape: str | None = None) -> bool:
    """Return whether an object has this colour and this shape; None fits all."""
    return color in (None, item.color) and shape in (None, item.shape)


def _slot_sets(avoid: frozenset[str]) -> Iterator[tuple[str, ...]]:
    """Yield sets of the attributes that may be said, the small ones first."""
    usable = [slot for slot in _SLOTS if slot not in avoid]
    for length in range(1, len(usable) + 1):
        yield from combinations(usable, length)


def _agree(first: SceneObject, second: SceneObject, slots: tuple[str, ...]) -> bool:
    return all(getattr(first, slot) == getattr(second, slot) for slot in slots)


def _say(item: SceneObject, slots: tuple[str, ...]) -> str:
    words = [getattr(item, slot) for slot in slots]
    return " ".join(words if "shape" in slots else [*words, "object"])


def _say_place(scene: Scene, target: int) -> str | None:
    item, others = scene.objects[target], _others(scene, target)
    if target == 0:
        return "leftmost object"
    if target == len(others):
        return "rightmost object"
    if all(is_above(item, other) for other in others):
        return "highest object"
    if all(is_above(other, item) for other in others):
        return "lowest object"
    return None


def _say_relation(scene: Scene, target: int, rng: random.Random) -> str | None:
    """Say shape or colour of the target and its side of another object, if that is unique."""
    item = scene.objects[target]
    anchor = rng.choice(_others(scene, target))
    anchor_said = describe(scene, anchor, rng)
    slot = rng.choice(["shape", "color"])
    relation = rng.choice(_relations(item, anchor))
    rivals = [other for other in _others(scene, target) if _agree(other, item, (slot,))]
    for rival in rivals:
        vertical = relation in ("above", "below")
        unclear = vertical and not differ_in_height(rival, anchor)
        if rival is not anchor and (unclear or relation in _relations(rival, anchor)):
            return None
    return f"{_say(item, (slot,))} {relation} the {anchor_said}" if anchor_said else None


def _relations(item: SceneObject, anchor: SceneObject) -> list[str]:
    found = ["left of" if is_left_of(item, anchor) else "right of"]
    if is_above(item, anchor):
        found.append("above")
    if is_above(anchor, item):
        found.append("below")
    return found


def _others(scene: Scene, target: int) -> list[SceneObject]:
    return [other for index, other in enumerate(scene.objects) if index != target]


def count_objects_named(caption: str, objects: Sequence[Named]) -> int:
    """Return how many objects a caption names with the right size, colour and shape.

    Args:
        caption: Any text; "a small red circle" is what counts as naming an object.
        objects: (size, colour, shape) of each object of the scene.

    Returns:
        The size of the multiset intersection: an object named twice counts once.
    """
    return sum((Counter(objects_named(caption)) & Counter(objects)).values())


def compute_caption_objects(
    captions: Sequence[str], scenes: Sequence[Sequence[Named]]
) -> list[float]:
    """Return, for each caption, the share of its scene's objects that it names rightly.

    Args:
        captions: One caption a scene.
        scenes: (size, colour, shape) of each object, one list a scene, none empty.

    Raises:
        ValueError: The two differ in length.
    """
    return [
        count_objects_named(caption, objects) / len(objects)
        for caption, objects in zip(captions, scenes, strict=True)
    ]
