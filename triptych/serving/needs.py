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

OTHER_RECIPES: dict[str, dict[str, str | None]] = {
    "vlmo": {
        "mplug.retrieval": "vlmo.retrieval",
        "mplug.vqa": "vlmo.vqa",
        "mplug.nlvr2": "vlmo.nlvr2",
        "mplug.snli_ve": "vlmo.snli_ve",
    },
    "flava": {
        "mplug.retrieval": "flava.joint",
        "mplug.vqa": "flava.vqa",
        "mplug.nlvr2": None,
        "mplug.snli_ve": "flava.snli_ve",
    },
}
"""By family, what teaches other models than mPLUG the same; None where nothing does."""

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
    own = OTHER_RECIPES.get(kind_of(type(model.config)), {}).get(recipe, recipe)
    if own is None:
        raise CapabilityError(f"{message} No recipe teaches it to models of this family")
    raise CapabilityError(
        f"{message} Train it: triptych train {own} --data YOUR_DATA.jsonl --init-from {folder}"
    )
