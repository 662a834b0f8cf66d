"""The page of a study: what was compared, what was found, what a paper found, and the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from triptych.core.files import write_atomic
from triptych.report.html import Chart, page_environment, page_style
from triptych.report.svg import element, format_coordinate, round_step

TONES = {"agrees": "is-right", "disagrees": "is-wrong", "cannot tell": "is-partly"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRow:
    """A variant's score, or a difference between two variants.

    Attributes:
        name: The variant, or the pair.
        what: The score.
        mean: Over seeds; None where nothing was measured.
        low: Lower end of the 95 % interval; None where one seed gives none.
        high: Upper end.
        number: The mean, in words.
        interval: The interval, in words.
        verdict: Of a difference: whether it agrees with a paper; None where none says anything.
        says: What the paper found, or what the variant is.
        source: Where the paper says so.
        is_main: Whether it is the study's main comparison.
    """

    name: str
    what: str
    mean: float | None
    low: float | None
    high: float | None
    number: str
    interval: str
    verdict: str | None = None
    says: str = ""
    source: str = ""
    is_main: bool = False

    @property
    def tone(self) -> str:
        """The colour of the verdict."""
        return TONES.get(self.verdict or "", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPage:
    """What the page shows.

    Attributes:
        title: Of the study.
        lines: The question, and how it was answered.
        notes: What a reader must know.
        comparisons: Differences, the main one first.
        scores: Of each variant; rows of a score follow each other.
        costs: A head and a row a variant.
        failed: Why, by what failed.
        charts: A chart a loss.
        facts: Of the machine.
        definition: The study as YAML.
    """

    title: str
    lines: Sequence[str]
    notes: Sequence[str]
    comparisons: Sequence[StudyRow]
    scores: Sequence[StudyRow]
    costs: Sequence[Sequence[str]]
    failed: Mapping[str, str]
    charts: Sequence[Chart]
    facts: Mapping[str, str]
    definition: str


def write_study_page(page: StudyPage, path: Path) -> None:
    """Write the page as one file that any browser opens without a network."""
    text = (
        page_environment()
        .get_template("study.html.j2")
        .render(
            page=page,
            style=page_style(),
            groups=_drawn(page.scores, centred=False),
            pairs=_drawn(page.comparisons, centred=True),
        )
    )
    write_atomic(path, text)


def _by_score(rows: Sequence[StudyRow]) -> dict[str, list[StudyRow]]:
    found: dict[str, list[StudyRow]] = {}
    for row in rows:
        found.setdefault(row.what, []).append(row)
    return found


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows of one score, which share their scale."""

    top: str
    rows: Sequence[tuple[StudyRow, Markup]]


def _drawn(rows: Sequence[StudyRow], *, centred: bool) -> dict[str, _Group]:
    """Return the rows of each score with their drawings."""
    found = {}
    for score, group in _by_score(rows).items():
        ends = [abs(v) for row in group for v in (row.mean, row.low, row.high) if v is not None]
        top = round_step(max(ends), 1) if ends and max(ends) > 0 else 1.0
        drawn = [(row, draw_interval(row, top, centred=centred)) for row in group]
        found[score] = _Group(f"{top:g}", drawn)
    return found


def draw_interval(row: StudyRow, top: float, *, centred: bool) -> Markup:
    """Return a mean as a dot and its interval as a whisker.

    Args:
        row: What is drawn.
        top: The value at the right end.
        centred: Whether 0 is in the middle, with a line, instead of at the left end.
    """

    def place(value: float) -> str:
        share = (value / top + 1) / 2 if centred else value / top
        return format_coordinate(100 * min(max(share, 0.0), 1.0)) + "%"

    def line(kind: str, left: str, top: float, right: str, bottom: float) -> Markup:
        return element("line", {"class": kind, "x1": left, "y1": top, "x2": right, "y2": bottom})

    parts = [element("rect", {"class": "track", "x": 0, "y": 9, "width": "100%", "height": 8})]
    if centred:
        parts.append(line("zero", "50%", 2, "50%", 24))
    if row.low is not None and row.high is not None:
        parts.append(line("whisker", place(row.low), 13, place(row.high), 13))
        parts += [line("whisker", place(end), 8, place(end), 18) for end in (row.low, row.high)]
    if row.mean is not None:
        parts.append(element("circle", {"class": "dot", "cx": place(row.mean), "cy": 13, "r": 5}))
    label = f"{row.name}, {row.what}: {row.number}, 95 % interval {row.interval}"
    attributes: dict[str, str | float] = {"class": "interval", "role": "img", "aria-label": label}
    return element("svg", attributes, *parts)
