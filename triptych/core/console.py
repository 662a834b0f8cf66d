"""rich's console, for text of others: its control characters are seen before it is laid out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from triptych.core.terminal import visible


class Console(rich.console.Console):
    """rich's console; the control characters of what it prints can be seen."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text to print, before anything is laid out by its width."""
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield pieces of lines, also of texts that somebody else made."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))
