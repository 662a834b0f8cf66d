"""What a model must have been trained for to be asked, and which recipe teaches it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triptych.core.errors import CapabilityError
from triptych.models.base import require_decoder
from triptych.tasks.registry import needed_capabilities, recipe_that_teaches, teaching_words


def require(asked: str, model: Any, trained_for: Sequence[str], folder: Path) -> None:
    """Raise a CapabilityError unless a model can do what it is asked.

    Args:
        asked: A method of `Engine`.
        model: The model; its family decides which recipe the message names.
        trained_for: Words of the model folder.
        folder: What the message names.
    """
    if "decode" in needed_capabilities(asked):
        require_decoder(model, asked)
    if set(teaching_words(asked)) & set(trained_for):
        return
    trained = " and ".join(trained_for) or "nothing"
    message = f"{folder} was trained for {trained}, which does not teach `{asked}`."
    recipe = recipe_that_teaches(asked, model)
    if recipe is None:
        raise CapabilityError(f"{message} No recipe teaches it to models of this family")
    raise CapabilityError(
        f"{message} Train it: triptych train {recipe} --data YOUR_DATA.jsonl --init-from {folder}"
    )
