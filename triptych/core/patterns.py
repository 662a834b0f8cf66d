"""Parts of a model by patterns over their dotted names."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence

from triptych.core.errors import ConfigError

MAX_SHOWN = 5

FACTORS = ("lora_A", "lora_B")
"""Names of the two matrices of a layer with low-rank adaptation, as in peft."""


def is_factor(name: str) -> bool:
    """Return whether a parameter is one of the two matrices, by its name."""
    return name.rpartition(".")[2] in FACTORS


def name_matches(pattern: str, name: str) -> bool:
    """Return whether a pattern covers a dotted name, or a run of whole parts of it.

    `*`, `?` and `[...]` are those of file names; `*` also matches dots. "text_encoder",
    "attention.qkv" and "blocks.1" match "text_encoder.blocks.1.attention.qkv", and "blocks.1" does
    not match "blocks.10".
    """
    glob = fnmatch.translate(pattern).removesuffix(r"\z").removesuffix(r"\Z")
    return re.search(rf"(?:^|\.){glob}(?:\.|$)", name) is not None


def select_names(
    patterns: Sequence[str], names: Iterable[str], *, field: str, what: str
) -> list[str]:
    """Return the names that any of the patterns matches, in their order.

    Args:
        patterns: See `name_matches`.
        names: All names.
        field: The setting that holds the patterns, for the message.
        what: What the names are of, in the singular, for the message.

    Raises:
        ConfigError: A pattern matches no name; the message lists near ones.
    """
    listed = list(names)
    chosen: set[str] = set()
    for pattern in patterns:
        found = [name for name in listed if name_matches(pattern, name)]
        if not found:
            raise ConfigError(
                f"{field}: {pattern!r} matches no {what} of this model{_near(pattern, listed)}"
            )
        chosen.update(found)
    return [name for name in listed if name in chosen]


def _near(pattern: str, names: Sequence[str]) -> str:
    """Return the names of parts that a pattern may have meant, or else the first parts."""
    length = pattern.count(".") + 1
    parts = [["*" if part.isdigit() else part for part in name.split(".")] for name in names]
    runs = dict.fromkeys(
        ".".join(own[start : start + length])
        for own in parts
        for start in range(len(own) - length + 1)
    )
    near = difflib.get_close_matches(pattern, list(runs), n=MAX_SHOWN, cutoff=0.5)
    if near:
        return f"; near it are {', '.join(near)}"
    first = list(dict.fromkeys(own[0] for own in parts))
    return f"; its parts are {', '.join(first)}" if first else "; it has none"
