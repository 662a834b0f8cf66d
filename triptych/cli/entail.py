"""`triptych entail`: say what an image says to hypotheses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from triptych.cli.parsing import EngineGroup, EngineOptions, FolderArgument, ImageArgument, parse
from triptych.core.errors import ConfigError

HELP = """Print for each hypothesis what the image says: entailment, neutral or contradiction.

Example:
  triptych entail runs/snli_ve/model image.jpg "a dog is outside" "nobody is here"
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EntailOptions:
    """What to compare.

    Attributes:
        folder: A model folder that was fine-tuned with mplug.snli_ve.
        image: An image file.
        hypotheses: Hypotheses, each in quotes.
        premise: What is known of the image in words, for a model that reads it.
        engine: How the model computes.
    """

    folder: FolderArgument
    image: ImageArgument
    hypotheses: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="HYPOTHESIS...")]
    ]
    premise: str | None = None
    engine: EngineGroup = field(default_factory=EngineOptions)


def run(arguments: Sequence[str]) -> int:
    """Print the likeliest label and its probability for each hypothesis."""
    options = parse(EntailOptions, arguments, verb="entail", description=HELP)
    if not options.hypotheses:
        raise ConfigError(
            "name at least one hypothesis: triptych entail MODEL_FOLDER IMAGE HYPOTHESIS..."
        )
    engine = options.engine.load(options.folder)
    found = engine.entail(options.image, options.hypotheses, premises=options.premise)
    assert isinstance(found, list)
    for hypothesis, shares in zip(options.hypotheses, found, strict=True):
        label = next(iter(shares))
        if options.engine.json:
            rounded = {name: round(share, 6) for name, share in shares.items()}
            line = {"image": options.image, "hypothesis": hypothesis, "label": label}
            print(json.dumps({**line, "probabilities": rounded}, ensure_ascii=False))
        else:
            print(f"{label}\t{shares[label]:.4f}\t{hypothesis}")
    return 0
