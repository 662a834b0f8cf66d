"""What a loaded model can be asked: one table, from which every way to ask is made.

The command line, the HTTP API, the web page and batch jobs read `VERBS`: what an item of each verb
consists of, which options hold for a whole call, and what an answer has. An answer is a dict of
JSON values, the same wherever it was asked for.

Example:
    ```python
    engine = triptych.load("runs/vqa/model")
    verb = VERBS["answer"]
    items = [verb.item(["image.jpg"], {"question": "what color is the bus?"})]
    verb.ask(engine, items, verb.read_options({"choices": ["red", "blue"]}))
    # [{"question": "what color is the bus?", "answer": "red"}]
    ```
"""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from triptych.core.config import check
from triptych.evaluation.zero_shot import TEMPLATES
from triptych.generation.search import BeamConfig
from triptych.serving.batches import OnError
from triptych.serving.classifying import check_entailment
from triptych.serving.engine import Engine
from triptych.serving.inputs import ImageInput
from triptych.serving.verb import Answer, Item, TextField, Verb
from triptych.tasks.finetuning.text_generator import GenerationSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionOptions(GenerationSettings):
    """How captions are generated; what is absent is as in the model folder.

    Attributes:
        prompt: Words that every caption begins with, and that are part of it.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerOptions(GenerationSettings):
    """How questions are answered; what is absent is as in the model folder.

    Attributes:
        choices: Answers to choose from; if there are none, the model generates freely.
    """

    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifyOptions:
    """What images are classified as.

    Attributes:
        labels: Class names, two or more; None is the classes that the model was fine-tuned for.
        templates: Sentences about a class; `{}` is its name. None is eighty built-in ones.
        top: Only the likeliest classes of each image; 0 is all.
    """

    labels: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    top: int = 0

    def __post_init__(self) -> None:
        """Reject a number of classes below 0."""
        check(self.top >= 0, "top", self.top, "be at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentOptions:
    """What is told of the class of each pixel.

    Attributes:
        mask: Whether the mask is given too, beside the share of each class.
    """

    mask: bool = False


def verbs_of(engine: Engine) -> dict[str, Verb]:
    """Return what a model can be asked, by name."""
    return {name: verb for name, verb in VERBS.items() if verb.refusal(engine) is None}


def refusals_of(engine: Engine) -> dict[str, str]:
    """Return why a model cannot be asked the other verbs, by name."""
    reasons = {name: verb.refusal(engine) for name, verb in VERBS.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def encode_mask(values: NDArray[np.uint8]) -> bytes:
    """Return values (H, W) as a PNG with a palette, so that classes look different."""
    image = Image.frombytes("P", values.shape[::-1], values.tobytes())
    hues = (colorsys.hsv_to_rgb(0.618 * k % 1, 0.35 + 0.1 * (k % 6), 0.9) for k in range(1, 256))
    image.putpalette([0, 0, 0, *(round(255 * part) for rgb in hues for part in rgb)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _images(items: Sequence[Item], number: int = 0) -> list[ImageInput]:
    return [item.images[number] for item in items]


def _texts(items: Sequence[Item], name: str) -> list[str]:
    return [item.texts[name] for item in items]


def _optional(items: Sequence[Item], name: str) -> list[str] | None:
    """Return an optional text of all items; None where they are without it."""
    return _texts(items, name) if items and name in items[0].texts else None


def _generation(options: GenerationSettings) -> GenerationSettings:
    """Return the part of a verb's options that says how texts are generated."""
    names = [field.name for field in fields(GenerationSettings)]
    return GenerationSettings(**{name: getattr(options, name) for name in names})


def _sampling(options: GenerationSettings) -> Any:
    """Return how captions are sampled; None where no option asks for samples."""
    return _generation(options).sampling(BeamConfig(max_tokens=30))


def _find_captions(
    engine: Engine, items: Sequence[Item], options: CaptionOptions, on_error: OnError
) -> Any:
    return engine.caption(
        _images(items),
        prompt=options.prompt,
        sampling=_sampling(options),
        seed=options.seed,
        generation=_generation(options),
        on_error=on_error,
    )


def _find_answers(
    engine: Engine, items: Sequence[Item], options: AnswerOptions, on_error: OnError
) -> Any:
    return engine.answer(
        _images(items),
        _texts(items, "question"),
        choices=options.choices or None,
        ocr_words=_optional(items, "ocr_words"),
        object_words=_optional(items, "object_words"),
        generation=_generation(options),
        on_error=on_error,
    )


def _find_classes(
    engine: Engine, items: Sequence[Item], options: ClassifyOptions, on_error: OnError
) -> Any:
    templates = TEMPLATES if options.templates is None else options.templates
    return engine.classify(_images(items), options.labels, templates=templates, on_error=on_error)


def _tell_classes(
    engine: Engine, item: Item, shares: dict[str, float], options: ClassifyOptions
) -> Answer:
    return {"labels": dict(list(shares.items())[: options.top or None])}


def _tell_mask(
    engine: Engine, item: Item, mask: NDArray[np.uint8], options: SegmentOptions
) -> Answer:
    classes = engine.segment_classes
    counts = ((mask == number).mean() for number in range(len(classes.names)))
    shares = {name: float(share) for name, share in zip(classes.names, counts, strict=True)}
    shown = sorted(((n, s) for n, s in shares.items() if s > 0), key=lambda pair: -pair[1])
    answer: Answer = {"shares": dict(shown)}
    if options.mask:
        png = encode_mask(classes.values(mask))
        answer["mask_png"] = base64.b64encode(png).decode("ascii")
    return answer


def _telling(name: str, given: str) -> Callable[[Engine, Item, Any, Any], Answer]:
    """Return what tells an answer beside the text that was asked about."""
    return lambda engine, item, found, options: {name: item.texts[name], given: found}


def _telling_labels(name: str) -> Callable[[Engine, Item, Any, Any], Answer]:
    """Return what tells all probabilities and the likeliest label; of a regression, the value."""

    def tell(engine: Engine, item: Item, shares: dict[str, float], options: Any) -> Answer:
        said = {name: item.texts[name]}
        if list(shares) == ["value"]:
            return {**said, **shares}
        return {**said, "label": next(iter(shares)), "probabilities": shares}

    return tell


_SHARES = dict[str, float]
_LABELS = {"label": str, "probabilities": _SHARES}

VERBS: Mapping[str, Verb] = MappingProxyType(
    {
        verb.name: verb
        for verb in (
            Verb(
                name="caption",
                about="describe images",
                capability="caption",
                num_images=1,
                options=CaptionOptions,
                gives={"caption": str},
                find=_find_captions,
                draws=lambda options: _sampling(options) is not None,
                tell=lambda engine, item, found, options: {"caption": found},
            ),
            Verb(
                name="answer",
                about="answer questions about images",
                capability="answer",
                num_images=1,
                texts=(
                    TextField("question", "a question about the image"),
                    TextField("ocr_words", "words that OCR read in the image", required=False),
                    TextField("object_words", "names of objects in the image", required=False),
                ),
                options=AnswerOptions,
                gives={"question": str, "answer": str},
                find=_find_answers,
                tell=_telling("question", "answer"),
            ),
            Verb(
                name="ground",
                about="find what phrases refer to: a box in pixels of the upright image",
                capability="ground",
                num_images=1,
                texts=(TextField("phrase", "what to find in the image"),),
                gives={"phrase": str, "box_xyxy": list[float]},
                find=lambda engine, items, options, on_error: engine.ground(
                    _images(items), _texts(items, "phrase"), on_error=on_error
                ),
                tell=lambda engine, item, box, options: {
                    "phrase": item.texts["phrase"],
                    "box_xyxy": list(box),
                },
                digits=1,
            ),
            Verb(
                name="match",
                about="score how well texts fit images, from 0 to 1",
                capability="match",
                num_images=1,
                texts=(TextField("text", "a text that may describe the image"),),
                gives={"text": str, "probability": float},
                find=lambda engine, items, options, on_error: engine.match(
                    _images(items), _texts(items, "text"), on_error=on_error
                ),
                tell=_telling("text", "probability"),
            ),
            Verb(
                name="classify",
                about="choose among classes",
                capability="classify",
                num_images=1,
                options=ClassifyOptions,
                gives={"labels": _SHARES},
                find=_find_classes,
                tell=_tell_classes,
            ),
            Verb(
                name="segment",
                about="find the class of each pixel: the share of each, and the mask as a PNG",
                capability="segment",
                num_images=1,
                options=SegmentOptions,
                gives={"shares": _SHARES, "mask_png": str | None},
                find=lambda engine, items, options, on_error: engine.segment(
                    _images(items), on_error=on_error
                ),
                tell=_tell_mask,
            ),
            Verb(
                name="judge",
                about="judge whether statements are true of two images, from 0 to 1",
                capability="judge",
                num_images=2,
                texts=(TextField("statement", "a statement about both images"),),
                gives={"statement": str, "probability": float},
                find=lambda engine, items, options, on_error: engine.judge(
                    _images(items), _images(items, 1), _texts(items, "statement"), on_error=on_error
                ),
                tell=_telling("statement", "probability"),
            ),
            Verb(
                name="entail",
                about="predict whether images entail texts: entailment, neutral, contradiction",
                capability="entail",
                num_images=1,
                texts=(
                    TextField("hypothesis", "a sentence about the image"),
                    TextField("premise", "what is known of the image in words", required=False),
                ),
                gives={"hypothesis": str, **_LABELS},
                find=lambda engine, items, options, on_error: engine.entail(
                    _images(items),
                    _texts(items, "hypothesis"),
                    premises=_optional(items, "premise"),
                    on_error=on_error,
                ),
                tell=_telling_labels("hypothesis"),
                refuse=lambda engine: check_entailment(engine.classifier, False, engine.folder),
            ),
            Verb(
                name="label",
                about="classify pairs of an image and a text",
                capability="label",
                num_images=1,
                texts=(TextField("text", "the text of the pair"),),
                gives={"text": str, **_LABELS},
                find=lambda engine, items, options, on_error: engine.label(
                    _images(items), _texts(items, "text"), on_error=on_error
                ),
                tell=_telling_labels("text"),
            ),
            Verb(
                name="label_texts",
                about="classify texts, or pairs of texts",
                capability="label_texts",
                num_images=0,
                texts=(
                    TextField("text", "the text, or the first of the pair"),
                    TextField("second_text", "the second text of the pair", required=False),
                ),
                gives={
                    "text": str,
                    "label": str | None,
                    "probabilities": _SHARES | None,
                    "value": float | None,
                },
                find=lambda engine, items, options, on_error: engine.label_texts(
                    _texts(items, "text"), _optional(items, "second_text")
                ),
                tell=_telling_labels("text"),
            ),
            Verb(
                name="embed_image",
                about="return embeddings of images, whose dot products are similarities",
                capability="embed",
                num_images=1,
                gives={"embedding": list[float]},
                find=lambda engine, items, options, on_error: engine.embed_images(
                    _images(items), on_error=on_error
                ),
                tell=lambda engine, item, row, options: {"embedding": row.tolist()},
                digits=None,
            ),
            Verb(
                name="embed_text",
                about="return embeddings of texts, whose dot products are similarities",
                capability="embed",
                num_images=0,
                texts=(TextField("text", "the text"),),
                gives={"text": str, "embedding": list[float]},
                find=lambda engine, items, options, on_error: engine.embed_texts(
                    _texts(items, "text")
                ),
                tell=lambda engine, item, row, options: {
                    "text": item.texts["text"],
                    "embedding": row.tolist(),
                },
                digits=None,
            ),
        )
    }
)
