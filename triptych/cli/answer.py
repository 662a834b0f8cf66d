"""`triptych answer`: answer a question about a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from triptych.cli.parsing import EngineGroup, EngineOptions, FolderArgument, ImageArgument, parse

HELP = """Answer a question about a picture.

Example:
  triptych answer runs/vqa/model picture.jpg "what color is the bus?"
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerOptions:
    """What to answer.

    Attributes:
        folder: A model folder that was fine-tuned with mplug.vqa.
        image: A picture file.
        question: The question, in quotes.
        engine: How the model computes.
    """

    folder: FolderArgument
    image: ImageArgument
    question: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="QUESTION")]]
    engine: EngineGroup = field(default_factory=EngineOptions)


def run(arguments: Sequence[str]) -> int:
    """Print the answer."""
    options = parse(AnswerOptions, arguments, verb="answer", description=HELP)
    engine = options.engine.load(options.folder)
    answer = engine.answer(options.image, options.question)
    if options.engine.json:
        found = {"image": options.image, "question": options.question, "answer": answer}
        print(json.dumps(found, ensure_ascii=False))
    else:
        print(answer)
    return 0
