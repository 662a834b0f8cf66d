"""The report as one HTML file: no script, no network, no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from pathlib import Path

from triptych.core.files import write_atomic
from triptych.report.axis import round_step
from triptych.report.cards import render_images
from triptych.report.data import Curve, ReportData, ScoreRow
from triptych.report.markup import Markup, element, escape, join
from triptych.report.numbers import format_duration, format_score, format_share
from triptych.report.readers import read_losses
from triptych.report.svg import NUM_COLOURS, Line, build_lines, draw_curves, draw_score, draw_times

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_NO_SECTION = Markup("")


def write_report(data: ReportData, path: Path) -> None:
    """Write the report as one file that any browser opens without a network.

    Args:
        data: What it says.
        path: The file to write; an old one is replaced.

    Raises:
        DataError: An image or a `metrics.jsonl` that it names cannot be read.
    """
    write_atomic(path, render_report(data))


def render_report(data: ReportData) -> str:
    """Return the page as text.

    Args:
        data: What it says.

    Raises:
        DataError: An image or a `metrics.jsonl` that it names cannot be read.
    """
    images = render_images(data.images, data.images_note) if data.images else _NO_SECTION
    sections = [
        ("scores", "Scores", render_scores(data.scores) if data.scores else _NO_SECTION),
        ("images", "Images", images),
        ("curves", "Loss curves", render_curves(data.curves)),
        ("times", "Time", render_times(data.times_s) if data.times_s else _NO_SECTION),
        ("run", "Run", render_run(data)),
    ]
    shown = [section for section in sections if section[2]]
    links = [element("a", {"href": f"#{name}"}, title) for name, title, _ in shown]
    body = element(
        "body",
        {},
        _render_header(data, element("nav", {"aria-label": "Parts of this page"}, *links)),
        element("main", {}, *(_render_section(*section) for section in shown)),
        element("footer", {}, "Written by Triptych. This file is complete: it loads nothing."),
    )
    page = element("html", {"lang": "en"}, _render_head(data.title), body)
    return f"<!DOCTYPE html>\n{page}\n"


def render_scores(rows: Sequence[ScoreRow]) -> Markup:
    """Return the table of scores, a group of rows for each task."""
    heads = ("Metric", "Score", "0 to 1", "Chance", "Blind", "Bar")
    cells = [element("th", {"scope": "col"}, head) for head in heads]
    cells[2] = element("th", {"scope": "col", "class": "scale"}, _scale_labels())
    groups = [
        _render_task(task, list(group)) for task, group in groupby(rows, lambda row: row.task)
    ]
    lead = (
        "Each score with its 95 % interval, beside what answering at random gives (chance), what "
        "answering without the image gives (blind), and what was to be reached (bar)."
    )
    keys = ("model", "95 % interval", "blind", "chance", "bar to reach")
    classes = ("key-model", "key-whisker", "key-blind", "key-chance", "key-target")
    legend = [element("li", {"class": name}, key) for name, key in zip(classes, keys, strict=True)]
    table = element("table", {"class": "scores"}, _thead(cells), *groups)
    return join(
        [element("p", {"class": "lead"}, lead), element("ul", {"class": "legend"}, *legend), table]
    )


def score_scale(row: ScoreRow) -> float:
    """Return the value at the right end of a row's bar: 1, or a round number above its values."""
    top = max(value for value in (row.value, row.high, row.blind or 0, row.bar or 0))
    return 1.0 if top <= 1 else round_step(top, 1)


def render_curves(curves: Sequence[Curve]) -> Markup:
    """Return a chart for each stage that has a finite loss."""
    figures = []
    for curve in curves:
        series = curve.series
        if series is None:
            series = read_losses(curve.metrics_jsonl) if curve.metrics_jsonl else {}
        lines = build_lines(series)
        if lines:
            figures.append(_render_curve(curve.title, lines))
    if not figures:
        return _NO_SECTION
    lead = "Faint: as logged. Strong: a moving mean over a thirtieth of the curve."
    return Markup(
        element("p", {"class": "lead"}, lead) + element("div", {"class": "charts"}, *figures)
    )


def render_times(times_s: Mapping[str, float]) -> Markup:
    """Return one stacked bar and the stages with their times and shares."""
    total = sum(times_s.values())
    shares = [seconds / total if total > 0 else 0.0 for seconds in times_s.values()]
    items = [
        element(
            "li",
            {"class": f"key-series series-{index % NUM_COLOURS}"},
            element("span", {"class": "stage"}, stage),
            element(
                "span", {"class": "took"}, f"{format_duration(seconds)} · {format_share(share)}"
            ),
        )
        for index, ((stage, seconds), share) in enumerate(zip(times_s.items(), shares, strict=True))
    ]
    lead = element("p", {"class": "lead"}, f"{format_duration(total)} in all.")
    bar = draw_times(shares, f"shares of {format_duration(total)}, listed below")
    return join([lead, bar, element("ul", {"class": "stages"}, *items)])


def render_run(data: ReportData) -> Markup:
    """Return machine, commit, commands and the configuration of each stage."""
    parts = []
    facts = {**data.machine, **({"commit": data.commit} if data.commit else {})}
    if facts:
        pairs = [
            element("div", {}, element("dt", {}, name), element("dd", {}, str(fact)))
            for name, fact in facts.items()
        ]
        parts += [element("h3", {}, "Machine and code"), element("dl", {"class": "facts"}, *pairs)]
    if data.commands:
        shown = element("pre", {}, element("code", {}, "\n".join(data.commands)))
        parts += [element("h3", {}, "Commands that make it again"), shown]
    if data.configuration:
        parts.append(element("h3", {}, "Configuration"))
    for stage, text in data.configuration.items():
        shown = element("pre", {}, element("code", {}, text))
        parts.append(element("details", {}, element("summary", {}, stage), shown))
    return join(parts)


def _render_head(title: str) -> Markup:
    style = (files("triptych.report") / "page.css").read_text(encoding="utf-8")
    return element(
        "head",
        {},
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": _POLICY}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("title", {}, title),
        element("style", {}, Markup(style)),
    )


def _render_header(data: ReportData, navigation: Markup) -> Markup:
    lines = [element("p", {}, line) for line in data.summary_lines]
    with_bar = [row for row in data.scores if row.bar is not None]
    parts = [
        element("p", {"class": "brand"}, "Triptych"),
        element("h1", {}, data.title),
        element("div", {"class": "summary"}, *lines),
    ]
    if with_bar:
        tiles = [_render_tile(row) for row in with_bar]
        parts.append(element("ul", {"class": "tiles", "aria-label": "Main scores"}, *tiles))
    return element("header", {}, *parts, navigation)


def _render_tile(row: ScoreRow) -> Markup:
    verdict = [_verdict(row), " ", element("small", {}, f"bar {row.bar:g}")]
    return element(
        "li",
        {},
        element("span", {"class": "what"}, element("b", {}, row.task), " ", row.metric),
        element("span", {"class": "figure"}, format_score(row.value)),
        element("span", {"class": "verdict"}, *verdict),
    )


def _render_section(name: str, title: str, content: Markup) -> Markup:
    heading = element("h2", {"id": f"{name}-title"}, title)
    return element("section", {"id": name, "aria-labelledby": f"{name}-title"}, heading, content)


def _thead(cells: Sequence[Markup]) -> Markup:
    return element("thead", {}, element("tr", {}, *cells))


def _scale_labels() -> Markup:
    return element("span", {}, *(element("i", {}, text) for text in ("0", "0.5", "1")))


def _render_task(task: str, rows: Sequence[ScoreRow]) -> Markup:
    heading = element("th", {"colspan": "6", "scope": "rowgroup"}, task)
    head = element("tr", {"class": "task"}, heading)
    return element("tbody", {}, head, *(_render_row(row) for row in rows))


def _render_row(row: ScoreRow) -> Markup:
    split = element("span", {"class": "split"}, row.split)
    name = [element("b", {}, row.metric), element("small", {}, split, " ", row.protocol)]
    interval = f"{format_score(row.low)} – {format_score(row.high)}"
    scale = score_scale(row)
    note = [element("small", {}, f"scale ends at {scale:g}")] if scale != 1 else []
    value = element("b", {}, format_score(row.value))
    cells = [
        element("th", {"scope": "row"}, *name),
        element("td", {"class": "value"}, value, element("small", {}, interval)),
        element("td", {"class": "drawing"}, draw_score(row, scale), *note),
        element("td", {"data-label": "chance"}, format_score(row.chance)),
        element("td", {"data-label": "blind"}, format_score(row.blind)),
        element("td", {"data-label": "bar"}, *_bar_cell(row)),
    ]
    return element("tr", {}, *cells)


def _bar_cell(row: ScoreRow) -> list[Markup]:
    if row.bar is None:
        return [escape("–")]
    return [escape(format_score(row.bar)), _verdict(row)]


def _verdict(row: ScoreRow) -> Markup:
    sign, word = ("✓", "reached") if row.reached else ("✗", "missed")
    css_class = "is-right" if row.reached else "is-wrong"
    sign_element = element("span", {"aria-hidden": "true"}, f"{sign} ")
    return element("span", {"class": f"mark {css_class}"}, sign_element, word)


def _render_curve(title: str, lines: Sequence[Line]) -> Markup:
    label = f"{title}: " + ", ".join(
        f"{line.name} from {_brief(line.smooth[0][1])} to {_brief(line.smooth[-1][1])}"
        for line in lines
    )
    items = [
        element(
            "li",
            {"class": f"key-line {line.colour}"},
            f"{line.name} ",
            element("b", {}, _brief(line.smooth[-1][1])),
        )
        for line in lines
    ]
    heading = element("h3", {}, title)
    legend = element("ul", {"class": "legend", "aria-label": "Last values"}, *items)
    caption = element("figcaption", {}, heading, legend)
    return element("figure", {"class": "curve"}, caption, draw_curves(lines, label))


def _brief(value: float) -> str:
    return f"{value:.3g}"
