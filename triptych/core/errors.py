"""Errors for what users do wrong. Each message says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TriptychError(ValueError):
    """Base of every error that a user can cause and fix."""


class ConfigError(TriptychError):
    """A field of a configuration is unknown, of the wrong type, or out of range."""


class DataError(TriptychError):
    """A manifest, an image or a caption cannot be used."""


class CheckpointError(TriptychError):
    """A checkpoint or model folder is missing, incomplete or of another kind."""


class CapabilityError(TriptychError):
    """Something was asked for that the model, or what is installed, does not offer."""


class NonFiniteError(TriptychError):
    """A loss, a gradient or a probability became NaN or infinite."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest choice, or an empty string.

    Args:
        name: What the user wrote.
        choices: The names that exist.

    Returns:
        A clause to append to an error message.
    """
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""
