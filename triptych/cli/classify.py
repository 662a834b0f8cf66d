"""`triptych classify`: say which of some classes an image shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from triptych.cli.parsing import EngineGroup, EngineOptions, FolderArgument, parse
from triptych.core.errors import ConfigError

HELP = """Print how likely each class is for each image, from the names of the classes alone.

Examples:
  triptych classify runs/mine/model image.jpg --labels "red circle,blue star,green cross"
  triptych classify runs/mine/model *.jpg --labels cat,dog --templates sentences.txt
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifyOptions:
    """What to classify.

    Attributes:
        folder: A model folder that was pre-trained, or fine-tuned for retrieval.
        images: Image files.
        labels: Names of the classes, with commas between them.
        templates: A text file of sentences about a class, one a line; {} is its name. Eighty
            built-in ones if absent.
        top: Print only the likeliest classes of each image; 0 prints all.
        engine: How the model computes.
    """

    folder: FolderArgument
    images: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="IMAGE...")]]
    labels: str
    templates: Path | None = None
    top: int = 0
    engine: EngineGroup = field(default_factory=EngineOptions)


def run(arguments: Sequence[str]) -> int:
    """Print probability and name of each class, the likeliest first."""
    options = parse(ClassifyOptions, arguments, verb="classify", description=HELP)
    if not options.images:
        raise ConfigError("name at least one image: triptych classify MODEL_FOLDER IMAGE...")
    if options.top < 0:
        raise ConfigError(f"top = {options.top}: must be at least 0")
    from triptych.evaluation.zero_shot import TEMPLATES, load_templates

    templates = TEMPLATES if options.templates is None else load_templates(options.templates)
    labels = [label.strip() for label in options.labels.split(",")]
    engine = options.engine.load(options.folder)
    found = engine.classify(list(options.images), labels, templates=templates)
    assert isinstance(found, list)
    for image, shares in zip(options.images, found, strict=True):
        shown = dict(list(shares.items())[: options.top or None])
        if options.engine.json:
            line = {"image": image, "labels": {k: round(v, 6) for k, v in shown.items()}}
            print(json.dumps(line, ensure_ascii=False))
            continue
        before = f"{image}\t" if len(options.images) > 1 else ""
        for label, share in shown.items():
            print(f"{before}{share:.4f}\t{label}")
    return 0
