"""What the pages share: tables, figures, and the blocks between markers that are rewritten."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from triptych.core.errors import DataError


def make_row(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def make_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(map(make_row, [head, ["---"] * len(head), *rows]))


def format_value(figure: Mapping[str, Any]) -> str:
    """Return a value with three significant digits, and its interval if it has one."""
    value = figure["value"]
    if value is None:
        return f"({figure['not_measured']})"
    if isinstance(value, str):
        return value
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if "low" in figure:
        text += f" ({figure['low']:.3g} to {figure['high']:.3g})"
    return text


def machine_name(machine: Mapping[str, str]) -> str:
    """Return processor, bf16 and torch of a machine."""
    bf16 = machine.get("bf16") or "unknown"
    return f"{machine['CPU']}, bf16: {bf16}; torch {machine['torch']}"


def fill_blocks(page: str, contents: Mapping[str, str]) -> str:
    """Return a page with new text between `<!-- NAME -->` and `<!-- /NAME -->`.

    Args:
        page: The old text.
        contents: What stands in the block of each name, without the last line's end.

    Raises:
        DataError: A name has no such block, or several.
    """
    for name, content in contents.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", flags=re.DOTALL)
        page, count = block.subn(lambda m, text=content: f"{m[1]}{text}\n{m[2]}", page)
        if count != 1:
            raise DataError(f"the page has {count} blocks for {name!r}, not one")
    return page
