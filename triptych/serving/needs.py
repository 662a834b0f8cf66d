"""What a model must have been trained for to be asked, and which recipe teaches it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triptych.core.config import kind_of
from triptych.core.errors import CapabilityError
from triptych.models.base import require_decoder

NEEDS = {
    "caption": (("captioning", "pretraining"), "mplug.caption"),
    "answer": (("vqa", "answer_classification"), "mplug.vqa"),
    "ground": (("grounding",), "mplug.grounding"),
    "match": (("retrieval", "pretraining"), "mplug.retrieval"),
    "embed": (("retrieval", "pretraining"), "mplug.retrieval"),
    "classify": (("retrieval", "pretraining"), "mplug.retrieval"),
    "judge": (("nlvr2",), "mplug.nlvr2"),
    "entail": (("image_text_classification",), "mplug.snli_ve"),
    "label": (("image_text_classification",), "classify.pairs"),
    "label_texts": (("text_classification",), "classify.texts"),
}
"""What a model must have been trained for to be asked, and the recipe that does it."""

OTHER_RECIPES = frozenset(
    {"vlmo.retrieval", "vlmo.vqa", "vlmo.nlvr2", "vlmo.snli_ve", "flava.vqa", "flava.snli_ve"}
)
"""Recipes that teach the same to models of other families than mPLUG."""

FLAVA_RECIPES = {"retrieval": "flava.joint", "nlvr2": None}
"""FLAVA is taught matching by its joint stage alone, and nothing about two pictures."""

NEEDS_DECODER = frozenset({"caption", "ground"})
"""What only a model that generates text can do."""


def require(asked: str, model: Any, trained_for: Sequence[str], folder: Path) -> None:
    """Raise a CapabilityError unless a model can do what it is asked.

    Args:
        asked: A key of `NEEDS`.
        model: The model; its family decides which recipe the message names.
        trained_for: Words of the model folder.
        folder: What the message names.
    """
    if asked in NEEDS_DECODER:
        require_decoder(model, asked)
    enough, recipe = NEEDS[asked]
    if set(enough) & set(trained_for):
        return
    trained = " and ".join(trained_for) or "nothing"
    message = f"{folder} was trained for {trained}, which does not teach `{asked}`."
    own = _recipe_of(kind_of(type(model.config)), recipe)
    if own is None:
        raise CapabilityError(f"{message} No recipe teaches it to models of this family")
    raise CapabilityError(
        f"{message} Train it: triptych train {own} --data YOUR_DATA.jsonl --init-from {folder}"
    )


def _recipe_of(family: str, recipe: str) -> str | None:
    """Return the recipe that teaches a family what `recipe` teaches mPLUG; None if none does."""
    name = recipe.split(".")[1]
    if family == "flava" and name in FLAVA_RECIPES:
        return FLAVA_RECIPES[name]
    own = f"{family}.{name}"
    return own if own in OTHER_RECIPES else recipe
