r"""What reaches a terminal: text of others can neither move its cursor nor give it orders.

Names of files and texts of data may hold escape sequences, which clear the screen, set its title or
type into it, and characters that turn the order of what is read. `guarded` writes them as
`\u001b`, which JSON reads, too, wherever the command line prints.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but for tabs and line feeds
    "\u202a-\u202e\u2066-\u2069"  # that turn the direction of what follows
    "\ud800-\udfff]"  # bytes of names that are no UTF-8, which cannot be printed at all
)
_COLOURS = re.compile("(\x1b\\[[0-9;]*m)")


def visible(text: str) -> str:
    r"""Return a text with control characters as `\u001b`; tabs and line feeds stay."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def readable(text: str) -> str:
    """Return a text that UTF-8 can hold: lone surrogates as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class _Guarded:
    """A text stream in which control characters can be seen; all else is that of the stream.

    Attributes:
        keeps_colours: Whether sequences that set colours pass, as parsers of options print them.
        rich_proxied_file: What rich writes to: its own sequences must pass; see `console`.
    """

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file, self.keeps_colours = stream, False

    def write(self, text: str) -> int:
        if self.keeps_colours:
            parts = _COLOURS.split(text)
            parts[::2] = map(visible, parts[::2])
            shown = "".join(parts)
        else:
            shown = visible(text)
        self.rich_proxied_file.write(shown)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextmanager
def guarded() -> Iterator[None]:
    """Let everything that the block prints be seen, and nothing of it be obeyed."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Guarded(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def colours() -> Iterator[None]:
    """Let colours pass in the block, for libraries that print their own; no other sequence does."""
    streams = [s for s in (sys.stdout, sys.stderr) if isinstance(s, _Guarded)]
    for stream in streams:
        stream.keeps_colours = True
    try:
        yield
    finally:
        for stream in streams:
            stream.keeps_colours = False
