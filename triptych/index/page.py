"""The page of `triptych search --html`: what was found, with thumbnails, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from triptych.core.files import write_atomic
from triptych.data.images import decode_image
from triptych.data.records import ImageSource
from triptych.data.skips import ImageProblem
from triptych.index.search import Hit
from triptych.index.store import IndexState
from triptych.report.html import encode_image

SIDE_PX = 256


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
            "thumbnail": _thumbnail(hit.image.image),
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


def _thumbnail(source: ImageSource) -> str | None:
    """Return an image as a data URL, or None where it can no longer be read."""
    try:
        return encode_image(decode_image(source), max_side_px=SIDE_PX, exact=False)
    except ImageProblem:
        return None
