"""What the page offers for an image: a panel for each verb that a loaded model can be asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.core.errors import DataError
from triptych.server.page_html import Box, render, render_shares, tint_mask
from triptych.server.schemas import MAX_TEXTS
from triptych.serving.engine import Engine
from triptych.serving.verb import Answer
from triptych.serving.verbs import VERBS
from triptych.tasks.finetuning.image_classification import ImageClassificationConfig
from triptych.tasks.registry import stored_task_config


@dataclass(frozen=True, slots=True)
class Found:
    """What a panel shows.

    Attributes:
        html: Below the panel's button.
        box: On the image: x0, y0, x1, y1 in its pixels.
        phrase: What the box is of.
        mask: Over the image, a data URL.
    """

    html: str
    box: Box | None = None
    phrase: str = ""
    mask: str | None = None


def _caption(answers: Sequence[Answer], engine: Engine) -> Found:
    return Found(render("said", answers[0]["caption"]))


def _answer(answers: Sequence[Answer], engine: Engine) -> Found:
    return Found(render("answers", [(a["question"], a["answer"]) for a in answers]))


def _box(answers: Sequence[Answer], engine: Engine) -> Found:
    x0, y0, x1, y1 = answers[0]["box_xyxy"]
    said = f"x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f} px"
    html = render("answers", [(answers[0]["phrase"], said)])
    return Found(html, (x0, y0, x1, y1), answers[0]["phrase"])


def _matches(answers: Sequence[Answer], engine: Engine) -> Found:
    return Found(render_shares({a["text"]: a["probability"] for a in answers}))


def _classes(answers: Sequence[Answer], engine: Engine) -> Found:
    return Found(render_shares(answers[0]["labels"]))


def _statement(answers: Sequence[Answer], engine: Engine) -> Found:
    return Found(render_shares({a["statement"]: a["probability"] for a in answers}))


def _mask(answers: Sequence[Answer], engine: Engine) -> Found:
    classes = engine.segment_classes
    value_of = {name: k + classes.zero_is_ignored for k, name in enumerate(classes.names)}
    mask, html = tint_mask(answers[0]["mask_png"], answers[0]["shares"], value_of)
    return Found(html, mask=mask)


def _labels(answers: Sequence[Answer], engine: Engine) -> Found:
    """Show the probabilities of a classifier, or the number that a regression gives."""
    answer = answers[0]
    if "probabilities" in answer:
        return Found(render_shares(answer["probabilities"]))
    return Found(render("said", f"{answer['value']:.4g}"))


@dataclass(frozen=True, slots=True)
class Tool:
    """A panel.

    Attributes:
        verb: What the model is asked.
        button: What starts it.
        show: From the answers, one a text, and the model that gave them to what is shown.
        field: Label of the field; "" where the images are all that is asked about.
        hint: In the empty field.
        lines: Height of the field; one of several takes a text a line.
        options: From the text of the field to options, where it is none of the verb's texts.
    """

    verb: str
    button: str
    show: Callable[[Sequence[Answer], Engine], Found]
    field: str = ""
    hint: str = ""
    lines: int = 1
    options: Callable[[str, Engine], Mapping[str, Any]] | None = None

    @property
    def two(self) -> bool:
        """Whether it asks about two images."""
        return VERBS[self.verb].num_images == 2

    def read(
        self, text: str, engine: Engine, max_items: int
    ) -> tuple[list[dict[str, str]], Mapping[str, Any]]:
        """Return the texts of each item, and the options, that the panel's field asks for.

        Raises:
            DataError: The field is empty, or holds too many texts.
        """
        if self.options is not None:
            return [{}], self.options(text, engine)
        name = VERBS[self.verb].text
        if name is None:
            return [{}], {}
        said = [line.strip() for line in (text.splitlines() if self.lines > 1 else [text])]
        said = list(dict.fromkeys(line for line in said if line))
        if not said:
            raise DataError(f"there is no {name} yet: write one first")
        if len(said) > max_items:
            raise DataError(f"there are {len(said)} lines, and at most {max_items} are taken")
        return [{name: line} for line in said], {}


def has_own_classes(engine: Engine) -> bool:
    """Return whether a model classifies images as what it was fine-tuned for."""
    return isinstance(stored_task_config(engine.settings.task), ImageClassificationConfig)


def _class_names(text: str, engine: Engine) -> dict[str, Any]:
    if has_own_classes(engine):
        return {}
    names = [name.strip() for name in text.replace("\n", ",").split(",")]
    labels = list(dict.fromkeys(name for name in names if name))
    if len(labels) < 2:
        raise DataError("there are fewer than two classes: write their names, separated by commas")
    if len(labels) > MAX_TEXTS:
        raise DataError(f"there are {len(labels)} classes, and at most {MAX_TEXTS} are taken")
    return {"labels": labels}


TOOLS = (
    Tool("caption", "Write a caption", _caption),
    Tool("segment", "Segment", _mask, options=lambda text, engine: {"mask": True}),
    Tool("answer", "Ask", _answer, "Ask a question", "What color is the star?"),
    Tool("ground", "Find", _box, "Find in the image", "the red circle on the left"),
    Tool("match", "Compare", _matches, "Compare with texts, one a line", "a red circle", 3),
    Tool(
        "classify",
        "Classify",
        _classes,
        "Choose among classes, separated by commas",
        "circle, square, star",
        options=_class_names,
    ),
    Tool("entail", "Check", _labels, "Check a hypothesis", "There is a dog outside"),
    Tool("label", "Label", _labels, "Label with a text", "The text that comes with the image"),
    Tool("judge", "Judge", _statement, "Judge a statement about two images", "Both show a dog"),
)
