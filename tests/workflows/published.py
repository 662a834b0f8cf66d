"""Published numbers beside a recipe's, so that one test lists all that differ."""

from collections.abc import Iterable
from operator import attrgetter
from typing import Any

from triptych.recipes.registry import build_recipe


def differing(rows: Iterable[tuple[str, str, Any, Any, str]]) -> list[str]:
    """Return a line for each number that a recipe has otherwise at the papers' scales.

    Args:
        rows: (recipe, field, value at base, value at large, source) of each number.
    """
    found = []
    for recipe, field, base, large, source in rows:
        for scale, expected in (("base", base), ("large", large)):
            value = attrgetter(field)(build_recipe(recipe, scale))
            if value != expected:
                found.append(f"{recipe} {scale}: {field} is {value}, {source} has {expected}")
    return found
