"""Parts of a fresh model that start from published single-modality weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from triptych.checkpoint.foreign import read_foreign
from triptych.core.errors import CapabilityError, CheckpointError, DataError
from triptych.models.families import family_of
from triptych.recipes.config import ModelSource
from triptych.text import Tokenizer


def init_parts(model: Any, source: ModelSource) -> list[str]:
    """Fill the parts that a model source names.

    Args:
        model: With fresh weights; changed in place.
        source: Says what to start from: `init_vision_from` and `init_text_from`.

    Returns:
        What became of the tensors, a line a group; empty where nothing was asked for.

    Raises:
        CapabilityError: The family has no such start, or the weights compute something else.
        CheckpointError: A file cannot be read, or is of other sizes.
    """
    lines: list[str] = []
    for part, place in (("vision", source.init_vision_from), ("text", source.init_text_from)):
        if place is None:
            continue
        family = family_of(model.config)
        fill = None if family.converter is None else getattr(family.converter, f"init_{part}")
        if fill is None:
            raise CapabilityError(
                f"{family.title} has no start from published {part} weights: "
                f"leave model.init_{part}_from out"
            )
        foreign = read_foreign(Path(place))
        try:
            report = fill(model, foreign.tensors, foreign.config)
        except (CheckpointError, CapabilityError) as error:
            raise type(error)(f"model.init_{part}_from = {place}: {error}") from error
        lines.append(f"{part} weights from {place}: {report.summary(long=False)}")
    return lines


def load_published_tokenizer(place: Path) -> Tokenizer:
    """Return the tokenizer that lies beside published text weights.

    Args:
        place: The folder with the weights.

    Raises:
        DataError: There is none, or it keeps capitals, which our texts have lost.
    """
    hint = "name one with --tokenizer.path"
    if not place.is_dir():
        raise DataError(f"{place} is no folder with a vocabulary: {hint}")
    settings = place / "tokenizer_config.json"
    if settings.is_file():
        try:
            cased = json.loads(settings.read_text(encoding="utf-8")).get("do_lower_case") is False
        except (ValueError, AttributeError) as error:
            raise DataError(f"{settings} is not valid: {error}") from error
        if cased:
            raise DataError(f"{place} keeps capitals, but texts are lower-cased: {hint}")
    try:
        return Tokenizer.load(place)
    except DataError as error:
        raise DataError(f"{error}: {hint}") from error
