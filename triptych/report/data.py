"""The contents of a report as plain data, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from triptych.core.outputs import MetricValue

ImageSource = npt.NDArray[np.uint8] | Path
"""(H, W, 3) RGB, or the path of an image in a file."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the image."""

Series = Mapping[str, Sequence[tuple[int, float]]]
"""(step, value) points of each named line."""

RIGHT_IOU = 0.5
"""A box counts as correct from this IoU on (RefCOCO's protocol)."""


class Answer(NamedTuple):
    """A question about an image, with the model's answer and the true one."""

    question: str
    answer_model: str
    answer_truth: str
    is_right: bool


class Grounding(NamedTuple):
    """A phrase, with the model's box (None: no box) and the true one."""

    phrase: str
    box_model: Box | None
    box_truth: Box
    iou: float


class Neighbour(NamedTuple):
    """A retrieved image, and whether it is a correct one."""

    image: ImageSource
    is_right: bool


class Search(NamedTuple):
    """A text, and the images of an index that are nearest to it, best first."""

    text: str
    images: tuple[ImageSource, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """A score with the values to compare it with.

    Attributes:
        task: Name of the task; rows of a task must follow each other.
        metric: Name of the metric.
        split: The data that it was measured on.
        value: The score; higher is better.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        chance: Score of a random answer; None where that is undefined.
        blind: Score of an answer that never looks at the image; None where none was measured.
        target: The score to reach; None where none was set.
        whole: The score of the whole run that this one is a part of; None where there is none.
        is_main: Whether it is also shown above the table; a row with a target is in any case.
        protocol: How it was measured, in a few words.
    """

    task: str
    metric: str
    split: str
    value: float
    low: float
    high: float
    chance: float | None = None
    blind: float | None = None
    target: float | None = None
    whole: float | None = None
    is_main: bool = False
    protocol: str = ""

    @property
    def aim(self) -> float | None:
        """What the score is compared with: the target, or else that of the whole run."""
        return self.whole if self.target is None else self.target

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None without one."""
        return None if self.target is None else self.value >= self.target


class Change(NamedTuple):
    """A score of a model, and of what a fine-tuning left of it (None: it cannot be asked)."""

    data: str
    images: int
    before: MetricValue
    after: MetricValue | None

    @property
    def text(self) -> str:
        """The difference with its sign; "lost" where nothing is left."""
        return "lost" if self.after is None else f"{self.after.value - self.before.value:+.3f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BeforeAfter:
    """What a fine-tuning did to other scores of the model that it began with.

    Attributes:
        stage: The fine-tuning.
        changes: Its scores before and after.
        notes: What a reader should know of them, or why there are none.
    """

    stage: str
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The loss curves of a stage, as numbers or as the file that holds them.

    Attributes:
        title: Name of the stage.
        metrics_jsonl: A run's `metrics.jsonl`, read when the report is written; or
        series: The points themselves.
    """

    title: str
    metrics_jsonl: Path | None = None
    series: Series | None = None

    def __post_init__(self) -> None:
        if (self.metrics_jsonl is None) == (self.series is None):
            raise ValueError(f"curve {self.title!r}: give either metrics_jsonl or series")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCard:
    """The model's outputs for one image.

    Attributes:
        image: The image.
        caption_truth: A true caption.
        caption_model: The model's caption.
        caption_right_objects: (objects that the caption names correctly, objects in the image).
        questions: Questions with both answers.
        phrases: Phrases with both boxes, in pixels of `image`.
        neighbours: Images retrieved for `caption_truth`, best first.
    """

    image: ImageSource
    caption_truth: str
    caption_model: str
    caption_right_objects: tuple[int, int] | None = None
    questions: tuple[Answer, ...] = ()
    phrases: tuple[Grounding, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """A whole report.

    Attributes:
        title: Heading of the page.
        summary_lines: A few sentences under the heading.
        scores: The table of scores, in the order to show.
        before_after: What each fine-tuning did to retrieval.
        not_scored: Benchmarks without a score: the title of each, and why.
        curves: Loss curves, one per stage.
        images: Single images.
        images_note: How the images were chosen.
        searches: Searches by words among images that training never saw.
        configuration: YAML text of each stage's configuration.
        machine: Facts about the machine, as `core.machine.describe_machine` returns them.
        commit: The code's commit, or its version.
        times_s: Seconds that each stage took, in the order of the run.
        commands: Commands that reproduce this report.
    """

    title: str
    summary_lines: tuple[str, ...] = ()
    scores: tuple[ScoreRow, ...] = ()
    before_after: tuple[BeforeAfter, ...] = ()
    not_scored: tuple[tuple[str, tuple[str, ...]], ...] = ()
    curves: tuple[Curve, ...] = ()
    images: tuple[ImageCard, ...] = ()
    images_note: str = (
        "Images that training never saw, chosen at random by a seed, right and wrong ones alike."
    )
    searches: tuple[Search, ...] = ()
    configuration: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, object] = field(default_factory=dict)
    commit: str = ""
    times_s: Mapping[str, float] = field(default_factory=dict)
    commands: tuple[str, ...] = ()


def format_score(value: float | None) -> str:
    """Return a score with three decimals; a tiny one keeps one digit, None is a dash."""
    if value is None:
        return "–"
    if 0 < abs(value) < 0.0005:
        return f"{value:.1g}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def format_duration(seconds: float) -> str:
    """Return seconds as `8.4 s`, `3 min 20 s` or `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_share(share: float) -> str:
    """Return a fraction in whole percent; a small one as `<1 %`."""
    return "<1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"
