"""`triptych answer`: answer a question about an image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from triptych.cli.parsing import EngineGroup, EngineOptions, FolderArgument, ImageArgument, parse

HELP = """Answer a question about an image.

Examples:
  triptych answer runs/vqa/model image.jpg "what color is the bus?"
  triptych answer runs/vqa/model image.jpg "is it a bus?" --choices yes no
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerOptions:
    """What to answer.

    Attributes:
        folder: A model folder that was fine-tuned with mplug.vqa.
        image: An image file.
        question: The question, in quotes.
        choices: Answers to choose from; any words if absent.
        ocr_words: Words that were read in the image, in quotes.
        object_words: Names of what the image holds, in quotes.
        engine: How the model computes.
    """

    folder: FolderArgument
    image: ImageArgument
    question: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="QUESTION")]]
    choices: tuple[str, ...] = ()
    ocr_words: str | None = None
    object_words: str | None = None
    engine: EngineGroup = field(default_factory=EngineOptions)


def run(arguments: Sequence[str]) -> int:
    """Print the answer."""
    options = parse(AnswerOptions, arguments, verb="answer", description=HELP)
    engine = options.engine.load(options.folder)
    answer = engine.answer(
        options.image,
        options.question,
        choices=options.choices or None,
        ocr_words=options.ocr_words,
        object_words=options.object_words,
    )
    if options.engine.json:
        found = {"image": options.image, "question": options.question, "answer": answer}
        print(json.dumps(found, ensure_ascii=False))
    else:
        print(answer)
    return 0
