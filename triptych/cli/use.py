"""The commands that ask a model: caption, answer, ground, classify, segment, match and others.

Each is a row of `USES`: its options, its help, and what it asks of the engine. One function loads
the model and prints what it answers, as text or with --json as one object a line.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from triptych.cli.parsing import (
    EngineGroup,
    EngineOptions,
    FolderArgument,
    GenerationGroup,
    GenerationOptions,
    ImageArgument,
    parse,
)
from triptych.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from triptych.serving.engine import Engine
    from triptych.serving.verb import Answer, Item, Verb

BOX_COLOR = (255, 0, 80)

Printed = tuple[dict[str, Any], "Answer", str]
"""What was asked about and its exact answer, printed with --json, and what is printed without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionOptions:
    """What to caption.

    Attributes:
        folder: A model folder, such as RUN_FOLDER/model.
        images: Image files, or clips.
        generation: How captions are generated; a prompt is part of what is printed.
        engine: How the model computes.
    """

    folder: FolderArgument
    images: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="IMAGE...")]]
    generation: GenerationGroup = field(default_factory=GenerationOptions)
    engine: EngineGroup = field(default_factory=EngineOptions)


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerOptions:
    """What to answer.

    Attributes:
        folder: A model folder that was fine-tuned with mplug.vqa.
        image: An image file or a clip.
        question: The question, in quotes.
        choices: Answers to choose from; if absent, the model generates freely.
        ocr_words: Words that OCR read in the image, in quotes.
        object_words: Names of the objects in the image, in quotes.
        generation: How the answer is generated.
        engine: How the model computes.
    """

    folder: FolderArgument
    image: ImageArgument
    question: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="QUESTION")]]
    choices: tuple[str, ...] = ()
    ocr_words: str | None = None
    object_words: str | None = None
    generation: GenerationGroup = field(default_factory=GenerationOptions)
    engine: EngineGroup = field(default_factory=EngineOptions)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundOptions:
    """What to find.

    Attributes:
        folder: A model folder that was fine-tuned with mplug.grounding.
        image: An image file.
        phrase: What to look for, in quotes.
        draw: Also write the image with the box drawn to this file.
        engine: How the model computes.
    """

    folder: FolderArgument
    image: ImageArgument
    phrase: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="PHRASE")]]
    draw: Path | None = None
    engine: EngineGroup = field(default_factory=EngineOptions)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifyOptions:
    """What to classify.

    Attributes:
        folder: A model folder that was pre-trained, or fine-tuned for retrieval or with
            classify.images.
        images: Image files.
        labels: Class names, separated by commas; a model of classify.images has its own.
        templates: A text file with one sentence per line; {} stands for the class name. If absent,
            eighty built-in ones.
        top: Print only the likeliest classes of each image; 0 prints all.
        engine: How the model computes.
    """

    folder: FolderArgument
    images: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="IMAGE...")]]
    labels: str | None = None
    templates: Path | None = None
    top: int = 0
    engine: EngineGroup = field(default_factory=EngineOptions)


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentOptions:
    """What to segment.

    Attributes:
        folder: A model folder that was fine-tuned with segment.images or vlmo.segmentation.
        image: An image file.
        out: Also write the mask to this PNG; its values are those of the masks in training.
        engine: How the model computes.
    """

    folder: FolderArgument
    image: ImageArgument
    out: Path | None = None
    engine: EngineGroup = field(default_factory=EngineOptions)


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchOptions:
    """What to compare.

    Attributes:
        folder: A model folder that was pre-trained, or fine-tuned with mplug.retrieval.
        image: An image file or a clip.
        texts: Texts, each in quotes.
        engine: How the model computes.
    """

    folder: FolderArgument
    image: ImageArgument
    texts: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT...")]]
    engine: EngineGroup = field(default_factory=EngineOptions)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class EntailOptions:
    """What to compare.

    Attributes:
        folder: A model folder that was fine-tuned with mplug.snli_ve.
        image: An image file.
        hypotheses: Hypotheses, each in quotes.
        premise: What is known about the image in words, for a model that reads it.
        engine: How the model computes.
    """

    folder: FolderArgument
    image: ImageArgument
    hypotheses: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="HYPOTHESIS...")]
    ]
    premise: str | None = None
    engine: EngineGroup = field(default_factory=EngineOptions)


def _caption(options: CaptionOptions, asked: Asked) -> Iterator[Printed]:
    items = [asked.verb.item([image]) for image in options.images]
    found = asked.answers(items, asdict(options.generation))
    for image, answer in zip(options.images, found, strict=True):
        if answer:
            caption = answer["caption"]
            yield {"image": image}, answer, caption if len(found) == 1 else f"{image}\t{caption}"


def _answer(options: AnswerOptions, asked: Asked) -> Iterator[Printed]:
    texts = {name: getattr(options, name) for name in ("question", "ocr_words", "object_words")}
    chosen = {**asdict(options.generation), "choices": options.choices}
    (answer,) = asked.answers([asked.verb.item([options.image], texts)], chosen)
    yield {"image": options.image}, answer, answer["answer"]


def _ground(options: GroundOptions, asked: Asked) -> Iterator[Printed]:
    item = asked.verb.item([options.image], {"phrase": options.phrase})
    (answer,) = asked.answers([item])
    if options.draw is not None:
        draw_box(options.image, answer["box_xyxy"], options.draw)
    box = asked.verb.told(answer)["box_xyxy"]
    yield {"image": options.image}, answer, " ".join(map(str, box))


def draw_box(image: str, box: Sequence[float], out: Path) -> None:
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
    ImageDraw.Draw(canvas).rectangle(tuple(box), outline=BOX_COLOR, width=width)
    try:
        canvas.save(out)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {out}: {error}; name a .png or .jpg file") from error


def _classify(options: ClassifyOptions, asked: Asked) -> Iterator[Printed]:
    from triptych.evaluation.zero_shot import load_templates

    chosen: dict[str, Any] = {"top": options.top}
    if options.templates is not None:
        chosen["templates"] = load_templates(options.templates)
    if options.labels is not None:
        chosen["labels"] = [label.strip() for label in options.labels.split(",")]
    items = [asked.verb.item([image]) for image in options.images]
    found = asked.answers(items, chosen)
    for image, answer in zip(options.images, found, strict=True):
        before = f"{image}\t" if len(found) > 1 else ""
        shown = answer.get("labels", {}).items()
        text = "\n".join(f"{before}{value:.4f}\t{label}" for label, value in shown)
        if answer:
            yield {"image": image}, answer, text


def _segment(options: SegmentOptions, asked: Asked) -> Iterator[Printed]:
    item = asked.verb.item([options.image])
    (answer,) = asked.answers([item], {"mask": options.out is not None})
    if options.out is not None:
        write_mask(options.out, base64.b64decode(answer.pop("mask_png")))
        answer["mask"] = str(options.out)
    text = "\n".join(f"{share:.4f}\t{name}" for name, share in answer["shares"].items())
    yield {"image": options.image}, answer, text


def write_mask(out: Path, png: bytes) -> None:
    """Write a mask.

    Raises:
        ConfigError: It cannot be written there.
    """
    if out.suffix.lower() != ".png":
        raise ConfigError(f"out = {str(out)!r}: masks are written as PNG: name a file.png")
    try:
        out.write_bytes(png)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error}") from error


def _match(options: MatchOptions, asked: Asked) -> Iterator[Printed]:
    items = [asked.verb.item([options.image], {"text": text}) for text in options.texts]
    for answer in asked.answers(items):
        yield {"image": options.image}, answer, f"{answer['probability']:.4f}\t{answer['text']}"


def _judge(options: JudgeOptions, asked: Asked) -> Iterator[Printed]:
    images = [options.first, options.second]
    items = [asked.verb.item(images, {"statement": said}) for said in options.statements]
    for answer in asked.answers(items):
        yield {"images": images}, answer, f"{answer['probability']:.4f}\t{answer['statement']}"


def _entail(options: EntailOptions, asked: Asked) -> Iterator[Printed]:
    texts = [{"hypothesis": said, "premise": options.premise} for said in options.hypotheses]
    for answer in asked.answers([asked.verb.item([options.image], text) for text in texts]):
        label, hypothesis = answer["label"], answer["hypothesis"]
        text = f"{label}\t{answer['probabilities'][label]:.4f}\t{hypothesis}"
        yield {"image": options.image}, answer, text


@dataclass(frozen=True, slots=True)
class Asked:
    """A verb and the model that is asked.

    Attributes:
        verb: Its row in the table.
        engine: The model.
        skipped: What is wrong with the images that could not be used.
    """

    verb: Verb
    engine: Engine
    skipped: list[str] = field(default_factory=list)

    def answers(self, items: list[Item], options: dict[str, Any] | None = None) -> list[Answer]:
        """Return exact answers, one an item; {} of an image that is skipped.

        Images are skipped where there are several: one that cannot be used costs no other answer.

        Raises:
            ConfigError: A folder is named instead of its images.
        """
        chosen = self.verb.read_options(options)
        several = len({item.images for item in items}) > 1
        if not several:
            _refuse_folders(image for item in items for image in item.images)
        return self.verb.answers(
            self.engine, items, chosen, on_error=self._skip if several else "raise"
        )

    def _skip(self, place: int, error: DataError) -> None:
        self.skipped.append(str(error))


def _refuse_folders(images: Iterable[object]) -> None:
    for image in images:
        if isinstance(image, str) and os.path.isdir(image):  # noqa: PTH112 - of any length
            raise ConfigError(
                f"{image}: is a folder: name an image in it; `triptych batch` asks about all "
                "images of a folder"
            )


@dataclass(frozen=True, slots=True)
class Use:
    """A command that asks a model.

    Attributes:
        verb: Its name.
        options: The dataclass of its arguments and flags.
        ask: From the options and the model to the answers, in the order to print.
        help: First part of its help text.
        many: The option that must name at least one thing; its name, one of it, and the usage.
    """

    verb: str
    options: type[Any]
    ask: Callable[[Any, Asked], Iterator[Printed]]
    help: str
    many: tuple[str, str, str] | None = None

    def run(self, arguments: Sequence[str]) -> int:
        """Ask the model, and print what it answers."""
        options = parse(self.options, arguments, verb=self.verb, description=self.help)
        if self.many is not None:
            name, one, usage = self.many
            if not getattr(options, name):
                raise ConfigError(f"name at least one {one}: triptych {self.verb} {usage}")
        if getattr(options, "top", 0) < 0:
            raise ConfigError(f"top = {options.top}: must be at least 0")
        from triptych.serving.verbs import VERBS

        asked = Asked(VERBS[self.verb], options.engine.load(options.folder))
        for about, answer, text in self.ask(options, asked):
            told = about | asked.verb.told(answer)
            print(json.dumps(told, ensure_ascii=False) if options.engine.json else text)
        for reason in asked.skipped:
            print(f"triptych: skipped: {reason}", file=sys.stderr)
        return int(bool(asked.skipped))


USES = (
    Use(
        "caption",
        CaptionOptions,
        _caption,
        """Describe images, one line per image.

Examples:
  triptych caption runs/mine/model image.jpg
  triptych caption runs/mine/model *.jpg --prompt "a photo of" --json
  triptych caption runs/mine/model image.jpg --top-p 0.9 --seed 1
""",
        many=("images", "image", "MODEL_FOLDER IMAGE..."),
    ),
    Use(
        "answer",
        AnswerOptions,
        _answer,
        """Answer a question about an image.

Examples:
  triptych answer runs/vqa/model image.jpg "what color is the bus?"
  triptych answer runs/vqa/model image.jpg "is it a bus?" --choices yes no
""",
    ),
    Use(
        "ground",
        GroundOptions,
        _ground,
        """Find the object that a phrase names; prints its box as x0 y0 x1 y1 in image pixels.

Examples:
  triptych ground runs/grounding/model image.jpg "the red bus"
  triptych ground runs/grounding/model image.jpg "the red bus" --draw found.png
""",
    ),
    Use(
        "classify",
        ClassifyOptions,
        _classify,
        """Print the probability of each class for each image.

The classes are those that the model was fine-tuned for, or any, from their names alone.

Examples:
  triptych classify runs/classes/model image.jpg --top 5
  triptych classify runs/mine/model image.jpg --labels "red circle,blue star,green cross"
  triptych classify runs/mine/model *.jpg --labels cat,dog --templates sentences.txt
""",
        many=("images", "image", "MODEL_FOLDER IMAGE..."),
    ),
    Use(
        "segment",
        SegmentOptions,
        _segment,
        """Print the share of an image that each class covers, and write the mask.

Example:
  triptych segment runs/segmentation/model image.jpg --out mask.png
""",
    ),
    Use(
        "match",
        MatchOptions,
        _match,
        """Print for each text the probability that it describes the image.

Example:
  triptych match runs/mine/model image.jpg "a red bus" "two dogs on a beach"
""",
        many=("texts", "text", "MODEL_FOLDER IMAGE TEXT..."),
    ),
    Use(
        "judge",
        JudgeOptions,
        _judge,
        """Print for each statement the probability that it is true of the two images.

Example:
  triptych judge runs/nlvr2/model left.jpg right.jpg "both pictures have a dog"
""",
        many=("statements", "statement", "MODEL_FOLDER IMAGE1 IMAGE2 STATEMENT..."),
    ),
    Use(
        "entail",
        EntailOptions,
        _entail,
        """Classify each hypothesis about the image: entailment, neutral or contradiction.

Example:
  triptych entail runs/snli_ve/model image.jpg "a dog is outside" "nobody is here"
""",
        many=("hypotheses", "hypothesis", "MODEL_FOLDER IMAGE HYPOTHESIS..."),
    ),
)

RUNS = {use.verb: use.run for use in USES}
