"""`triptych judge`: say whether statements are true of two images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from triptych.cli.parsing import EngineGroup, EngineOptions, FolderArgument, parse
from triptych.core.errors import ConfigError

HELP = """Print for each statement the probability, 0 to 1, that it is true of two images.

Example:
  triptych judge runs/nlvr2/model left.jpg right.jpg "both pictures have a dog"
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeOptions:
    """What to judge.

    Attributes:
        folder: A model folder that was fine-tuned with mplug.nlvr2.
        first: The left image, a file.
        second: The right image, a file.
        statements: Statements, each in quotes.
        engine: How the model computes.
    """

    folder: FolderArgument
    first: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="IMAGE1")]]
    second: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="IMAGE2")]]
    statements: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="STATEMENT...")]
    ]
    engine: EngineGroup = field(default_factory=EngineOptions)


def run(arguments: Sequence[str]) -> int:
    """Print a probability for each statement, in the order given."""
    options = parse(JudgeOptions, arguments, verb="judge", description=HELP)
    if not options.statements:
        raise ConfigError(
            "name at least one statement: triptych judge MODEL_FOLDER IMAGE1 IMAGE2 STATEMENT..."
        )
    engine = options.engine.load(options.folder)
    scores = engine.judge(options.first, options.second, options.statements)
    assert isinstance(scores, list)
    for statement, score in zip(options.statements, scores, strict=True):
        if options.engine.json:
            images = [options.first, options.second]
            found = {"images": images, "statement": statement, "probability": round(score, 6)}
            print(json.dumps(found, ensure_ascii=False))
        else:
            print(f"{score:.4f}\t{statement}")
    return 0
