"""`triptych ground`: find what a phrase refers to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from triptych.cli.parsing import EngineGroup, EngineOptions, FolderArgument, ImageArgument, parse
from triptych.core.errors import ConfigError

HELP = """Find what a phrase refers to: prints the box as x0 y0 x1 y1 in pixels of the image.

Examples:
  triptych ground runs/grounding/model image.jpg "the red bus"
  triptych ground runs/grounding/model image.jpg "the red bus" --draw found.png
"""

COLOR = (255, 0, 80)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundOptions:
    """What to find.

    Attributes:
        folder: A model folder that was fine-tuned with mplug.grounding.
        image: An image file.
        phrase: What to look for, in quotes.
        draw: Also write the image with the box drawn on it to this file.
        engine: How the model computes.
    """

    folder: FolderArgument
    image: ImageArgument
    phrase: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="PHRASE")]]
    draw: Path | None = None
    engine: EngineGroup = field(default_factory=EngineOptions)


def run(arguments: Sequence[str]) -> int:
    """Print the box, and draw it where asked."""
    options = parse(GroundOptions, arguments, verb="ground", description=HELP)
    engine = options.engine.load(options.folder)
    found = engine.ground([options.image], options.phrase)
    assert isinstance(found, list)
    box = [round(value, 1) for value in found[0]]
    if options.draw is not None:
        draw_box(options.image, found[0], options.draw)
    if options.engine.json:
        print(json.dumps({"image": options.image, "phrase": options.phrase, "box_xyxy": box}))
    else:
        print(*box)
    return 0


def draw_box(image: str, box: tuple[float, float, float, float], out: Path) -> None:
    """Write an image with a box on it.

    Args:
        image: Image file.
        box: x0, y0, x1, y1 in pixels of the upright image.
        out: Where to; the suffix decides the format.

    Raises:
        ConfigError: No image can be written there.
    """
    from PIL import Image, ImageDraw

    from triptych.serving.inputs import read_image

    canvas = Image.fromarray(read_image(image))
    width = max(1, round(min(canvas.size) / 100))
    ImageDraw.Draw(canvas).rectangle(box, outline=COLOR, width=width)
    try:
        canvas.save(out)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {out}: {error}; name a .png or .jpg file") from error
