"""Write the report as one HTML file: no script, no network, no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from triptych.core.errors import DataError
from triptych.core.files import write_atomic
from triptych.data import records
from triptych.data.images import decode_image
from triptych.data.skips import ImageProblem
from triptych.report.curves import VALIDATION, read_curves
from triptych.report.data import (
    RIGHT_IOU,
    Curve,
    ImageCard,
    ImageSource,
    ReportData,
    ScoreRow,
    Series,
    format_duration,
    format_score,
    format_share,
)
from triptych.report.svg import (
    NUM_COLOURS,
    Line,
    build_lines,
    draw_boxes,
    draw_curves,
    draw_score,
    draw_times,
    round_step,
)

RGBArray = npt.NDArray[np.uint8]

MAX_SIDE_PX = 360
EXACT_SIDE_PX = 96
_JPEG_QUALITY = 88
THUMBNAIL_PX = 128
PREVIEW_PX = 256


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """An image embedded in the page.

    Attributes:
        src: A data URI.
        width: Of the original, in pixels.
        height: Of the original, in pixels.
        exact: Whether its pixels are shown as squares.
    """

    src: str
    width: int
    height: int
    exact: bool


@dataclass(frozen=True, slots=True)
class CardView:
    """A card with its images embedded and its boxes drawn."""

    card: ImageCard
    image: EmbeddedImage
    boxes: Markup
    neighbours: tuple[NeighbourView, ...]


@dataclass(frozen=True, slots=True)
class NeighbourView:
    """A retrieved image, embedded."""

    image: EmbeddedImage
    is_right: bool


@dataclass(frozen=True, slots=True)
class Chart:
    """The curves of one stage, drawn."""

    title: str
    lines: Sequence[Line]
    drawing: Markup


@dataclass(frozen=True, slots=True)
class Stages:
    """The time of each stage, as text and as a drawing."""

    total: str
    rows: Sequence[tuple[str, str]]
    drawing: Markup


def write_report(data: ReportData, path: Path) -> None:
    """Write the report as one file that any browser opens without a network.

    Args:
        data: Its contents.
        path: The file to write; an old one is replaced.

    Raises:
        DataError: An image or a `metrics.jsonl` that it names cannot be read.
    """
    write_atomic(path, render_report(data))


def render_report(data: ReportData) -> str:
    """Return the page as text.

    Args:
        data: Its contents.

    Raises:
        DataError: An image or a `metrics.jsonl` that it names cannot be read.
    """
    charts = _charts(data.curves)
    facts = {**data.machine, **({"commit": data.commit} if data.commit else {})}
    has_run = bool(facts or data.commands or data.configuration)
    sections = {
        "scores": ("Scores", data.scores),
        "before_after": ("Before and after", data.before_after),
        "not_scored": ("Not scored", data.not_scored),
        "images": ("Images", data.images),
        "search": ("Search", data.searches),
        "curves": ("Loss curves", charts),
        "times": ("Time", data.times_s),
        "run": ("Run", has_run),
    }
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            sections={name: title for name, (title, content) in sections.items() if content},
            style=page_style(),
            views=[_card_view(card) for card in data.images],
            lead=_images_lead(data.images, data.images_note),
            found=[
                (search.text, [_thumbnail(image) for image in search.images])
                for search in data.searches
            ],
            has_boxes=any(card.phrases for card in data.images),
            charts=charts,
            stages=_stages(data.times_s) if data.times_s else None,
            facts=facts,
        )
    )


def score_scale(row: ScoreRow) -> float:
    """Return the value at the right end of a row's bar: 1, or a round number above its values."""
    top = max(value for value in (row.value, row.high, row.blind or 0, row.aim or 0))
    return 1.0 if top <= 1 else round_step(top, 1)


def page_style() -> Markup:
    """Return the style sheet of all pages."""
    return Markup((files("triptych.report") / "templates" / "page.css").read_text("utf-8"))


@cache
def page_environment() -> Environment:
    """Return the templates; values are escaped unless they are Markup."""
    environment = Environment(
        loader=PackageLoader("triptych.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "score": format_score,
        "brief": _brief,
        "by_task": _by_task,
        "score_scale": score_scale,
    }
    environment.globals |= {
        "draw_score": draw_score,
        "num_colours": NUM_COLOURS,
        "right_iou": RIGHT_IOU,
    }
    return environment


def _by_task(rows: Iterable[ScoreRow]) -> list[tuple[str, list[ScoreRow]]]:
    return [(task, list(group)) for task, group in groupby(rows, lambda row: row.task)]


def _images_lead(cards: Sequence[ImageCard], note: str) -> str:
    """Return the note, and how many answers on the cards are right."""
    answers = [answer.is_right for card in cards for answer in card.questions]
    boxes = [phrase.iou >= RIGHT_IOU for card in cards for phrase in card.phrases]
    counts = [
        f"{sum(marks)} of {len(marks)} {name} are right"
        for name, marks in (("answers", answers), ("boxes", boxes))
        if marks
    ]
    return f"{note} On this page {' and '.join(counts)}." if counts else note


def _card_view(card: ImageCard) -> CardView:
    pixels = load_image(card.image)
    height, width = pixels.shape[:2]
    boxes = draw_boxes(card.phrases, width, height) if card.phrases else Markup("")
    neighbours = tuple(
        NeighbourView(_thumbnail(neighbour.image), neighbour.is_right)
        for neighbour in card.neighbours
    )
    return CardView(card, _embedded(pixels, encode_image(pixels)), boxes, neighbours)


def _thumbnail(image: ImageSource) -> EmbeddedImage:
    pixels = load_image(image)
    return _embedded(pixels, encode_image(pixels, max_side_px=THUMBNAIL_PX, exact=False))


def _embedded(pixels: RGBArray, src: str) -> EmbeddedImage:
    height, width = pixels.shape[:2]
    return EmbeddedImage(src, width, height, exact=max(height, width) <= EXACT_SIDE_PX)


def _charts(curves: Sequence[Curve]) -> list[Chart]:
    """Return a chart for each stage that has a finite loss, and for each that was validated."""
    charts: list[Chart] = []
    for curve in curves:
        series = {curve.title: curve.series or {}}
        if curve.metrics_jsonl is not None:
            series = {
                curve.title: read_curves(curve.metrics_jsonl),
                f"{curve.title}: validation": read_curves(curve.metrics_jsonl, VALIDATION),
            }
        charts += draw_charts(series)
    return charts


def draw_charts(series: Mapping[str, Series]) -> list[Chart]:
    """Return a chart for each title whose curves have a finite point."""
    built = {title: build_lines(points) for title, points in series.items()}
    return [
        Chart(title, lines, draw_curves(lines, _label(title, lines)))
        for title, lines in built.items()
        if lines
    ]


def _label(title: str, lines: Sequence[Line]) -> str:
    """Return the accessible name of a chart."""
    return f"{title}: " + ", ".join(
        f"{line.name} from {_brief(line.smooth[0][1])} to {_brief(line.smooth[-1][1])}"
        for line in lines
    )


def _stages(times_s: Mapping[str, float]) -> Stages:
    total = sum(times_s.values())
    shares = [seconds / total if total > 0 else 0.0 for seconds in times_s.values()]
    rows = [
        (stage, f"{format_duration(seconds)} · {format_share(share)}")
        for (stage, seconds), share in zip(times_s.items(), shares, strict=True)
    ]
    drawing = draw_times(shares, f"shares of {format_duration(total)}, listed below")
    return Stages(format_duration(total), rows, drawing)


def _brief(value: Any) -> str:
    return f"{value:.3g}"


def load_image(image: ImageSource) -> RGBArray:
    """Return an image as (H, W, 3) uint8 RGB.

    Raises:
        DataError: The file cannot be read, or the array is of another shape or type.
    """
    if isinstance(image, (str, Path)):
        return decode_image(Path(image))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"an image of a report is (H, W, 3) uint8, not {image.shape} {image.dtype}")
    return image


def thumbnail(source: records.ImageSource, max_side_px: int = PREVIEW_PX) -> str | None:
    """Return an image as a data URI, shrunk; None where it cannot be read."""
    try:
        return encode_image(decode_image(source), max_side_px=max_side_px, exact=False)
    except ImageProblem:
        return None


def encode_image(pixels: RGBArray, *, max_side_px: int = MAX_SIDE_PX, exact: bool = True) -> str:
    """Return a data URI: PNG for a small image, JPEG for others, shrunk to `max_side_px`.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        max_side_px: Longest side of what is written.
        exact: Whether an image of at most 96 px is written without loss.
    """
    image = Image.fromarray(pixels)
    longest = max(image.size)
    if longest > max_side_px:
        ratio = max_side_px / longest
        size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if exact and longest <= EXACT_SIDE_PX:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        # without `optimize`: Pillow then has no room for an image of noise, and fails
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
