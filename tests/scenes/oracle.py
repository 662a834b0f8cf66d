"""Answers recomputed from the words and the ground truth alone, without the library's text code."""

from __future__ import annotations

import re
from typing import Any

Thing = dict[str, Any]

NUMBERS = {"no": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
COLORS = {"red", "green", "blue", "yellow", "purple", "orange", "cyan", "black"}
SHAPES = {"circle", "square", "triangle", "star", "cross", "heart"}
SIZES = {"small", "large"}


def things(scene) -> list[Thing]:
    names = ("size", "color", "shape", "material", "x", "y", "radius")
    return [{name: getattr(item, name) for name in names} for item in scene.objects]


def matching(words: str, objects: list[Thing]) -> list[Thing]:
    """Objects that a noun phrase such as "small red circles" or "the object" fits."""
    found = objects
    for word in words.split():
        single = word[:-2] if word == "crosses" else word.rstrip("s")
        if word in SIZES:
            found = [o for o in found if o["size"] == word]
        elif word in COLORS:
            found = [o for o in found if o["color"] == word]
        elif word == "cross" or single in SHAPES:
            found = [o for o in found if o["shape"] == (word if word == "cross" else single)]
        elif word in ("plain", "striped"):
            found = [o for o in found if o["material"] == word]
        elif word not in ("a", "an", "the", "object", "objects"):
            raise AssertionError(f"the oracle does not know {word!r} in {words!r}")
    return found


def only(words: str, objects: list[Thing]) -> Thing:
    found = matching(words, objects)
    assert len(found) == 1, f"{words!r} fits {len(found)} objects"
    return found[0]


def holds(relation: str, first: Thing, second: Thing) -> bool:
    dx, dy = second["x"] - first["x"], second["y"] - first["y"]
    vertical = abs(dy) >= 0.1 - 1e-9
    return {
        "left of": dx > 0,
        "right of": dx < 0,
        "above": dy > 0 and vertical,
        "below": dy < 0 and vertical,
    }[relation]


def answer(question: str, objects: list[Thing]) -> str:
    def fit(pattern: str) -> re.Match[str] | None:
        return re.fullmatch(pattern, question)

    if m := fit(r"is there (an? .*)\?"):
        return "yes" if matching(m[1], objects) else "no"
    if m := fit(r"how many (.*) are there\?"):
        return str(len(matching(m[1], objects)))
    if m := fit(r"what (color|shape|material) is (the .*)\?"):
        return str(only(m[2], objects)[m[1]])
    if m := fit(r"is (the .*) (left or right of|above or below) (the .*)\?"):
        first, second = only(m[1], objects), only(m[3], objects)
        choices = ["left of", "right of"] if m[2].startswith("left") else ["above", "below"]
        (true,) = [c for c in choices if holds(c, first, second)]
        return true.removesuffix(" of")
    if m := fit(r"is (the .*) (left of|right of) (the .*)\?"):
        return "yes" if holds(m[2], only(m[1], objects), only(m[3], objects)) else "no"
    if m := fit(r"is (the .*) (small|large)\?"):
        return "yes" if only(m[1], objects)["size"] == m[2] else "no"
    raise AssertionError(f"the oracle does not know the question {question!r}")


def referred(phrase: str, objects: list[Thing]) -> list[Thing]:
    """All objects that a referring phrase fits."""
    extremes = {"leftmost": ("x", min), "rightmost": ("x", max)}
    extremes |= {"highest": ("y", min), "lowest": ("y", max)}
    if m := re.fullmatch(r"the (leftmost|rightmost|highest|lowest) object", phrase):
        axis, extreme = extremes[m[1]]
        best = extreme(o[axis] for o in objects)
        return [o for o in objects if o[axis] == best]
    if m := re.fullmatch(r"(the .*) (left of|right of|above|below) (the .*)", phrase):
        anchor = only(m[3], objects)
        return [o for o in matching(m[1], objects) if o is not anchor and holds(m[2], o, anchor)]
    return matching(phrase, objects)


def is_true_of_two(statement: str, left: list[Thing], right: list[Thing]) -> bool:
    if m := re.fullmatch(r"(both|exactly one|neither) pictures? ha(?:s|ve) (an? .*)", statement):
        holders = bool(matching(m[2], left)) + bool(matching(m[2], right))
        return holders == {"both": 2, "exactly one": 1, "neither": 0}[m[1]]
    if m := re.fullmatch(r"the (left|right) picture has (an? .*)", statement):
        return bool(matching(m[2], left if m[1] == "left" else right))
    if m := re.fullmatch(r"there are more objects in the (left|right) picture than .*", statement):
        return (len(left) > len(right)) if m[1] == "left" else (len(right) > len(left))
    if m := re.fullmatch(r"there (?:is|are) (\w+) (\w+) in the two pictures together", statement):
        return len(matching(m[2], left + right)) == NUMBERS[m[1]]
    raise AssertionError(f"the oracle does not know the statement {statement!r}")


def entailment(hypothesis: str, objects: list[Thing]) -> str:
    hidden = re.search(r"\b(heavy|expensive|wooden|new) ", hypothesis)
    plain = hypothesis.replace(hidden[0], "") if hidden else hypothesis
    if m := re.fullmatch(r"there is (an? .*)", plain):
        truth = bool(matching(m[1], objects))
    elif m := re.fullmatch(r"there (?:is|are) (\w+) (objects?)", plain):
        truth = len(objects) == NUMBERS[m[1]]
    elif m := re.fullmatch(r"(the .*) is (small|large)", plain):
        truth = only(m[1], objects)["size"] == m[2]
    elif m := re.fullmatch(r"(the .*) is (left|right) of (the .*)", plain):
        truth = holds(f"{m[2]} of", only(m[1], objects), only(m[3], objects))
    else:
        raise AssertionError(f"the oracle does not know the hypothesis {hypothesis!r}")
    if not truth:
        return "contradiction"
    return "neutral" if hidden else "entailment"
