"""The commands that ask a model: caption, answer, ground, classify, segment, match and others.

Each is a row of `USES`: its options, its help, and what it asks of the engine. One function loads
the model and prints what it answers, as text or with --json as one object a line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
from triptych.core.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from triptych.generation.sampling import SamplingConfig
    from triptych.serving.engine import Engine

BOX_COLOR = (255, 0, 80)

Answer = tuple[dict[str, Any], str]
"""What is printed with --json, and what without."""


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


def _caption(options: CaptionOptions, engine: Engine) -> Iterator[Answer]:
    given = options.generation
    captions = engine.caption(
        options.images,
        prompt=given.prompt,
        sampling=_sampling(given),
        seed=given.seed,
        generation=given.settings(),
    )
    for image, caption in zip(options.images, captions, strict=True):
        text = caption if len(options.images) == 1 else f"{image}\t{caption}"
        yield {"image": image, "caption": caption}, text


def _sampling(given: GenerationOptions) -> SamplingConfig | None:
    """Return how captions are sampled; None where no flag asks for samples."""
    from triptych.generation.search import BeamConfig

    return given.settings().sampling(BeamConfig(max_tokens=30))


def _answer(options: AnswerOptions, engine: Engine) -> Iterator[Answer]:
    answer = engine.answer(
        options.image,
        options.question,
        choices=options.choices or None,
        ocr_words=options.ocr_words,
        object_words=options.object_words,
        generation=options.generation.settings(),
    )
    yield {"image": options.image, "question": options.question, "answer": answer}, str(answer)


def _ground(options: GroundOptions, engine: Engine) -> Iterator[Answer]:
    found = engine.ground([options.image], options.phrase)
    assert isinstance(found, list)
    box = [round(value, 1) for value in found[0]]
    if options.draw is not None:
        draw_box(options.image, found[0], options.draw)
    told = {"image": options.image, "phrase": options.phrase, "box_xyxy": box}
    yield told, " ".join(map(str, box))


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
    ImageDraw.Draw(canvas).rectangle(box, outline=BOX_COLOR, width=width)
    try:
        canvas.save(out)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {out}: {error}; name a .png or .jpg file") from error


def _classify(options: ClassifyOptions, engine: Engine) -> Iterator[Answer]:
    from triptych.evaluation.zero_shot import TEMPLATES, load_templates

    templates = TEMPLATES if options.templates is None else load_templates(options.templates)
    names = options.labels
    labels = None if names is None else [label.strip() for label in names.split(",")]
    found = engine.classify(list(options.images), labels, templates=templates)
    assert isinstance(found, list)
    for image, probabilities in zip(options.images, found, strict=True):
        shown = dict(list(probabilities.items())[: options.top or None])
        before = f"{image}\t" if len(options.images) > 1 else ""
        text = "\n".join(f"{before}{value:.4f}\t{label}" for label, value in shown.items())
        yield {"image": image, "labels": {k: round(v, 6) for k, v in shown.items()}}, text


def _segment(options: SegmentOptions, engine: Engine) -> Iterator[Answer]:
    mask = engine.segment([options.image])[0]
    classes = engine.segment_classes
    if options.out is not None:
        write_mask(options.out, classes.values(mask))
    counts = ((mask == number).mean() for number in range(len(classes.names)))
    shares = {name: float(share) for name, share in zip(classes.names, counts, strict=True)}
    shown = {name: share for name, share in shares.items() if share > 0}
    shown = dict(sorted(shown.items(), key=lambda pair: -pair[1]))
    text = "\n".join(f"{share:.4f}\t{name}" for name, share in shown.items())
    told = {"image": options.image, "shares": {k: round(v, 6) for k, v in shown.items()}}
    yield told if options.out is None else told | {"mask": str(options.out)}, text


def write_mask(out: Path, values: NDArray[np.uint8]) -> None:
    """Write values (H, W) as a PNG with a palette, so that classes look different.

    Raises:
        ConfigError: It cannot be written there.
    """
    import colorsys

    from PIL import Image

    if out.suffix.lower() != ".png":
        raise ConfigError(f"out = {str(out)!r}: masks are written as PNG: name a file.png")
    image = Image.frombytes("P", values.shape[::-1], values.tobytes())
    hues = (colorsys.hsv_to_rgb(0.618 * k % 1, 0.35 + 0.1 * (k % 6), 0.9) for k in range(1, 256))
    image.putpalette([0, 0, 0, *(round(255 * part) for rgb in hues for part in rgb)])
    try:
        image.save(out)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error}") from error


def _match(options: MatchOptions, engine: Engine) -> Iterator[Answer]:
    scores = engine.match(options.image, options.texts)
    assert isinstance(scores, list)
    for text, score in zip(options.texts, scores, strict=True):
        told = {"image": options.image, "text": text, "probability": round(score, 6)}
        yield told, f"{score:.4f}\t{text}"


def _judge(options: JudgeOptions, engine: Engine) -> Iterator[Answer]:
    scores = engine.judge(options.first, options.second, options.statements)
    assert isinstance(scores, list)
    images = [options.first, options.second]
    for statement, score in zip(options.statements, scores, strict=True):
        told = {"images": images, "statement": statement, "probability": round(score, 6)}
        yield told, f"{score:.4f}\t{statement}"


def _entail(options: EntailOptions, engine: Engine) -> Iterator[Answer]:
    found = engine.entail(options.image, options.hypotheses, premises=options.premise)
    assert isinstance(found, list)
    for hypothesis, probabilities in zip(options.hypotheses, found, strict=True):
        label = next(iter(probabilities))
        rounded = {name: round(value, 6) for name, value in probabilities.items()}
        told = {"image": options.image, "hypothesis": hypothesis, "label": label}
        text = f"{label}\t{probabilities[label]:.4f}\t{hypothesis}"
        yield told | {"probabilities": rounded}, text


@dataclass(frozen=True, slots=True)
class Use:
    """A command that asks a model.

    Attributes:
        verb: Its name.
        options: The dataclass of its arguments and flags.
        ask: From the options and the engine to the answers, in the order to print.
        help: First part of its help text.
        many: The option that must name at least one thing; its name, one of it, and the usage.
    """

    verb: str
    options: type[Any]
    ask: Callable[[Any, Engine], Iterator[Answer]]
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
        engine = options.engine.load(options.folder)
        for told, text in self.ask(options, engine):
            print(json.dumps(told, ensure_ascii=False) if options.engine.json else text)
        return 0


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
