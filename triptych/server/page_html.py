"""What the page shows, as HTML: the image with its boxes, results, answers and problems.

What a user, a dataset or a model wrote is escaped by Jinja. Images are data URLs, so that none of
them lies at an address where somebody else could ask for it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from triptych.report.html import encode_image

Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]

PREVIEW_PX = 960
SHOWN_SHARES = 10


@dataclass(frozen=True, slots=True)
class ShownHit:
    """A result of a search, ready to be shown.

    Attributes:
        number: Its row in the index; what a click on it opens.
        caption: The dataset's, or its id.
        thumbnail: A data URL; None where the image can no longer be read.
        score: Cosine with the query; None where nothing was asked.
        match: Probability by ITM; None where it was not re-ranked.
    """

    number: int
    caption: str
    thumbnail: str | None
    score: float | None = None
    match: float | None = None


@dataclass(frozen=True, slots=True)
class ShownImage:
    """The opened image, and what was found in it.

    Attributes:
        name: Its caption or file name.
        preview: A data URL.
        width: Of the upright original, in pixels.
        height: Of the upright original, in pixels.
        box: x0, y0, x1, y1 in pixels of the original.
        phrase: What the box is of.
        mask: A data URL with transparency, laid over the image.
    """

    name: str
    preview: str
    width: int
    height: int
    box: Box | None = None
    phrase: str = ""
    mask: str | None = None


@cache
def _parts() -> Any:
    environment = Environment(
        loader=PackageLoader("triptych.server"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").module


def render(part: str, *values: Any) -> str:
    """Return a part of the page: the macro of that name in page.html.j2."""
    return str(getattr(_parts(), part)(*values)).strip()


def render_figure(
    pixels: Pixels,
    name: str,
    *,
    box: Box | None = None,
    phrase: str = "",
    mask: str | None = None,
) -> str:
    """Return the opened image.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        name: What to call it.
        box: x0, y0, x1, y1 in its pixels.
        phrase: What the box is of.
        mask: What lies over it, from `paint_mask`.
    """
    height, width = pixels.shape[:2]
    preview = encode_image(pixels, max_side_px=PREVIEW_PX)
    return render("figure", ShownImage(name, preview, width, height, box, phrase, mask))


def render_shares(shares: Mapping[str, float]) -> str:
    """Return the largest probabilities by name, as bars."""
    largest = sorted(shares.items(), key=lambda pair: -pair[1])
    return render("bars", largest[:SHOWN_SHARES], max(0, len(largest) - SHOWN_SHARES))


def tint_mask(
    png: str, shares: Mapping[str, float], value_of: Mapping[str, int]
) -> tuple[str, str]:
    """Make a mask something to lay over its image.

    Args:
        png: The mask in base64: a PNG with a palette.
        shares: Of the image, by the name of the class.
        value_of: The value of each class in the mask.

    Returns:
        The mask as a data URL, and a legend with its colours as HTML.
    """
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        palette = image.getpalette() or []
    legend = []
    for name, share in shares.items():
        start = 3 * value_of[name]
        legend.append((name, "rgb({} {} {})".format(*palette[start : start + 3]), share))
    return f"data:image/png;base64,{png}", render("legend", legend)
