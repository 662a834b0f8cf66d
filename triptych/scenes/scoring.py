"""How much of a scene a caption names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from triptych.scenes.language import Named, objects_named


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
