"""The page of `triptych search --html`: what was found, with thumbnails, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from triptych.core.files import write_atomic
from triptych.index.search import Hit
from triptych.index.store import IndexState
from triptych.report.html import thumbnail


def write_page(path: Path, asked: str, hits: Sequence[Hit], state: IndexState) -> None:
    """Write a page that shows hits; it loads nothing from anywhere.

    Args:
        path: The HTML file.
        asked: What was looked for, in words.
        hits: What was found.
        state: Of the index.
    """
    environment = Environment(
        loader=PackageLoader("triptych.index"), autoescape=True, undefined=StrictUndefined
    )
    shown = [
        {
            "thumbnail": thumbnail(hit.image.image),
            "alt": hit.image.captions[0] if hit.image.captions else f"image {hit.image.id}",
            "caption": hit.image.captions[0] if hit.image.captions else hit.image.id,
            "score": hit.score,
            "match": hit.match,
            "path": str(hit.image.image),
        }
        for hit in hits
    ]
    text = environment.get_template("hits.html.j2").render(
        asked=asked, hits=shown, num_images=state.num_images, model=state.model
    )
    write_atomic(path, text)
