"""`triptych caption`: say what pictures show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from triptych.cli.parsing import EngineGroup, EngineOptions, FolderArgument, parse
from triptych.core.errors import ConfigError

HELP = """Say what pictures show, one line a picture.

Examples:
  triptych caption runs/mine/model picture.jpg
  triptych caption runs/mine/model *.jpg --prompt "a photo of" --json
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionOptions:
    """What to caption.

    Attributes:
        folder: A model folder, such as RUN_FOLDER/model.
        images: Picture files.
        prompt: Words that every caption begins with.
        num_beams: Width of the beam search; the model folder's own if absent.
        engine: How the model computes.
    """

    folder: FolderArgument
    images: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="IMAGE...")]]
    prompt: str | None = None
    num_beams: int | None = None
    engine: EngineGroup = field(default_factory=EngineOptions)


def run(arguments: Sequence[str]) -> int:
    """Print a caption for each picture."""
    options = parse(CaptionOptions, arguments, verb="caption", description=HELP)
    if not options.images:
        raise ConfigError("name at least one picture: triptych caption MODEL_FOLDER IMAGE...")
    engine = options.engine.load(options.folder)
    captions = engine.caption(options.images, prompt=options.prompt, num_beams=options.num_beams)
    for image, caption in zip(options.images, captions, strict=True):
        if options.engine.json:
            print(json.dumps({"image": image, "caption": caption}, ensure_ascii=False))
        else:
            print(caption if len(options.images) == 1 else f"{image}\t{caption}")
    return 0
