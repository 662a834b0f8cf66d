"""HTML and SVG as text that cannot be left unescaped: only `Markup` passes as it is."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping

_VOID = frozenset({"meta", "img", "br"})
_NO_ATTRIBUTES: Mapping[str, str | float] = {}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(
    name: str,
    attributes: Mapping[str, str | float] = _NO_ATTRIBUTES,
    *children: str,
) -> Markup:
    """Return an element; children and attribute values that are no `Markup` are escaped.

    Args:
        name: Name of the tag.
        attributes: Values by name; a float is written with at most two decimals.
        *children: What stands between the tags.
    """
    written = "".join(f' {key}="{_attribute(value)}"' for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[str], separator: str = "") -> Markup:
    """Return the children in a row, escaped unless they are `Markup`."""
    return Markup(separator.join(map(escape, children)))


def escape(text: str) -> Markup:
    """Return the text with `<`, `>`, `&` and quotes escaped; `Markup` returns as it is."""
    return text if isinstance(text, Markup) else Markup(html.escape(text))


def format_coordinate(value: float) -> str:
    """Return a number with at most two decimals and no trailing zeros."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _attribute(value: str | float) -> str:
    return html.escape(value) if isinstance(value, str) else format_coordinate(value)
