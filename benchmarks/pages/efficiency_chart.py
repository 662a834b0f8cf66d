"""A bar chart of two times for each network, as an SVG file that any page can show.

It has a white ground of its own, so that it is readable on a light and on a dark page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from triptych.report.svg import Axis, build_value_axis, element, format_tick

CHART_WIDTH, PLOT_LEFT, PLOT_RIGHT, PLOT_TOP = 820, 190, 550, 84
BAR_HEIGHT, GROUP_HEIGHT, FOOT = 16, 54, 46
STYLE = Markup(
    "text{font-family:system-ui,'Segoe UI','DejaVu Sans',Arial,sans-serif;font-size:12px;"
    "fill:#1f2328}.title{font-size:15px;font-weight:600}.name{font-weight:600}"
    ".faint{fill:#57606a}.end{text-anchor:end}.middle{text-anchor:middle}"
    ".paper{fill:#fff;stroke:#d0d7de}.grid{stroke:#e3e6ea}.axis{stroke:#57606a}"
    ".forward{fill:#8fbce6}.both{fill:#1f5f9e}.flops{stroke:#c2410c;stroke-width:2.5}"
)


def format_number(value: float) -> str:
    """Return a number with three digits that count; all digits of the thousands."""
    if value == 0:
        return "0"
    return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:,.0f}"


@dataclass(frozen=True, slots=True)
class Bar:
    """A time beside that of the reference.

    Attributes:
        time_ms: What was measured.
        ratio: The time over the reference's.
        flops_ratio: The operations over the reference's.
        expected_ms: The reference's time multiplied by that.
    """

    time_ms: float
    ratio: float
    flops_ratio: float
    expected_ms: float

    @property
    def label(self) -> str:
        """The text next to the bar."""
        time = format_number(self.time_ms)
        return f"{time} ms, {self.ratio:.2f}× (FLOPs {self.flops_ratio:.2f}×)"


@dataclass(frozen=True, slots=True)
class Group:
    """The bars of a network.

    Attributes:
        name: Of the network.
        note: Stands below the name.
        forward: Bar of the forward pass.
        both: Bar of forward and backward pass.
    """

    name: str
    note: str
    forward: Bar
    both: Bar


def draw_groups(title: str, groups: Sequence[Group], reference: str, legend: str) -> Markup:
    """Return the chart.

    Each network has a bar for the forward pass and one for forward and backward pass. A mark shows
    where a bar would end if time followed operations, starting from the reference.

    Args:
        title: What the chart shows.
        groups: From top to bottom.
        reference: Name of the network that the ratios are over.
        legend: What the notes mean.
    """
    height = PLOT_TOP + len(groups) * GROUP_HEIGHT + FOOT
    bars = [bar for group in groups for bar in (group.forward, group.both)]
    highest = max(max(bar.time_ms, bar.expected_ms) for bar in bars)
    axis = build_value_axis(0.0, highest, PLOT_LEFT, PLOT_RIGHT)
    parts = [
        element("title", {}, title),
        element("style", {}, STYLE),
        _rect("paper", 0.5, 0.5, CHART_WIDTH - 1, height - 1),
        _text("title", 16, 26, title),
        *_draw_legend(reference, legend),
        *_draw_axis(axis, height - FOOT),
    ]
    for row, group in enumerate(groups):
        parts += _draw_group(group, axis, PLOT_TOP + row * GROUP_HEIGHT)
    root: dict[str, str | float] = {
        "xmlns": "http://www.w3.org/2000/svg",
        "width": CHART_WIDTH,
        "height": height,
        "viewBox": f"0 0 {CHART_WIDTH} {height}",
        "role": "img",
    }
    return Markup(element("svg", root, *parts) + "\n")


def _draw_legend(reference: str, legend: str) -> list[Markup]:
    return [
        _rect("forward", 16, 41, 12, 12),
        _text("", 34, 51, "forward"),
        _rect("both", 102, 41, 12, 12),
        _text("", 120, 51, "forward and backward"),
        _line("flops", 276, 39, 276, 55),
        _text("", 286, 51, f"where a bar would end if time followed FLOPs, from {reference} on"),
        _text("faint", 16, 71, legend),
        _text("faint", PLOT_RIGHT + 8, 71, f"ratios over {reference}"),
    ]


def _draw_axis(axis: Axis, bottom: float) -> list[Markup]:
    parts = []
    for tick in axis.ticks:
        x = axis.position(tick)
        parts.append(_line("grid", x, PLOT_TOP - 4, x, bottom))
        parts.append(_text("faint middle", x, bottom + 17, format_tick(tick)))
    parts.append(_line("axis", PLOT_LEFT, bottom, PLOT_RIGHT, bottom))
    parts.append(_line("axis", PLOT_LEFT, PLOT_TOP - 4, PLOT_LEFT, bottom))
    middle = (PLOT_LEFT + PLOT_RIGHT) / 2
    parts.append(_text("middle", middle, bottom + 36, "median time of a pair, ms"))
    return parts


def _draw_group(group: Group, axis: Axis, top: float) -> list[Markup]:
    parts = [
        _text("name end", PLOT_LEFT - 10, top + 18, group.name),
        _text("faint end", PLOT_LEFT - 10, top + 34, group.note),
    ]
    for row, (css_class, bar) in enumerate((("forward", group.forward), ("both", group.both))):
        y = top + 6 + row * (BAR_HEIGHT + 3)
        end, mark = axis.position(bar.time_ms), axis.position(bar.expected_ms)
        parts += [
            _rect(css_class, PLOT_LEFT, y, end - PLOT_LEFT, BAR_HEIGHT),
            _line("flops", mark, y - 1, mark, y + BAR_HEIGHT + 1),
            _text("", max(end, mark) + 8, y + 12.5, bar.label),
        ]
    return parts


def _rect(css_class: str, x: float, y: float, width: float, height: float) -> Markup:
    box: dict[str, str | float] = {"x": x, "y": y, "width": width, "height": height}
    return element("rect", {"class": css_class, **box})


def _line(css_class: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return element("line", {"class": css_class, "x1": x1, "y1": y1, "x2": x2, "y2": y2})


def _text(css_class: str, x: float, y: float, text: str) -> Markup:
    return element("text", {"class": css_class, "x": x, "y": y}, text)
