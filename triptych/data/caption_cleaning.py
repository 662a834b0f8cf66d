"""Caption cleaning of the released pre-training code (`pre_caption`), and the left/right rule."""

from __future__ import annotations

import re

MAX_WORDS = 30

_DELETED = str.maketrans("", "", ",.'!?\"()*#:;~")
_SPACED = str.maketrans("-/", "  ")
_SIDE = re.compile(r"\b(?:left|right)(?:most|hand|ward|wards)?\b", re.IGNORECASE)


def clean_caption(caption: str, max_words: int | None = MAX_WORDS) -> str:
    """Lower the caption, take out punctuation and keep the first words.

    The characters , . ' ! ? " ( ) * # : ; ~ are deleted, - and / become spaces, `<person>` becomes
    `person`, and runs of white space become one space.

    Args:
        caption: The text as it was read.
        max_words: Words that are kept (released: 30). None only lowers the caption and joins runs
            of white space, as FLAVA's tokenizer reads it.

    Returns:
        The clean caption; empty where nothing is left.
    """
    if max_words is None:
        return " ".join(caption.lower().split())
    lowered = caption.lower().translate(_DELETED).translate(_SPACED)
    return " ".join(lowered.replace("<person>", "person").split()[:max_words])


def swap_sides(text: str) -> str:
    """Exchange the words left and right, also in leftmost, right-hand and the like."""
    return _SIDE.sub(_other_side, text)


def _other_side(found: re.Match[str]) -> str:
    word = found.group()
    size = 4 if word.lower().startswith("left") else 5
    other = "right" if size == 4 else "left"
    other = other.capitalize() if word[0].isupper() else other
    return other + word[size:]


def mentions_side(text: str) -> bool:
    """Tell whether a text says left or right, so that its image must not be mirrored.

    "right", "Leftmost", "left-hand" count; "bright" and "leftover" do not.
    """
    return _SIDE.search(text) is not None
