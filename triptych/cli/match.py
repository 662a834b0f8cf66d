"""`triptych match`: say how well texts fit an image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from triptych.cli.parsing import EngineGroup, EngineOptions, FolderArgument, ImageArgument, parse
from triptych.core.errors import ConfigError

HELP = """Print for each text the probability, 0 to 1, that it describes the image.

Example:
  triptych match runs/mine/model image.jpg "a red bus" "two dogs on a beach"
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchOptions:
    """What to compare.

    Attributes:
        folder: A model folder that was pre-trained, or fine-tuned with mplug.retrieval.
        image: An image file.
        texts: Texts, each in quotes.
        engine: How the model computes.
    """

    folder: FolderArgument
    image: ImageArgument
    texts: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT...")]]
    engine: EngineGroup = field(default_factory=EngineOptions)


def run(arguments: Sequence[str]) -> int:
    """Print a probability for each text, in the order given."""
    options = parse(MatchOptions, arguments, verb="match", description=HELP)
    if not options.texts:
        raise ConfigError("name at least one text: triptych match MODEL_FOLDER IMAGE TEXT...")
    engine = options.engine.load(options.folder)
    scores = engine.match(options.image, options.texts)
    assert isinstance(scores, list)
    for text, score in zip(options.texts, scores, strict=True):
        if options.engine.json:
            found = {"image": options.image, "text": text, "probability": round(score, 6)}
            print(json.dumps(found, ensure_ascii=False))
        else:
            print(f"{score:.4f}\t{text}")
    return 0
