"""SVG drawings: loss curves, score bars, stacked times, boxes over an image.

Colours are classes of `page.css` (`series-0` .. `series-7`, `is-right`, `is-wrong`), so that a
drawing follows the light or dark scheme of the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from triptych.report.curves import Points, keep_finite, smooth, thin
from triptych.report.data import RIGHT_IOU, Box, Grounding, ScoreRow, Series, format_score

CHART_WIDTH, CHART_HEIGHT = 480, 280
PLOT_LEFT, PLOT_RIGHT, PLOT_TOP, PLOT_BOTTOM = 42, 398, 22, 242
NUM_COLOURS = 8
_LABEL_GAP_PX = 14
_LONGEST_LABEL = 10
"""Letters of a name that fit beside a chart; of longer ones, the legend alone tells the colours."""
_LOG_FROM_RATIO = 30.0
_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
_MAX_LOG_TICKS = 7
_NO_ATTRIBUTES: Mapping[str, str | float] = {}
_BAR_TOPS = {"model": (7, 12), "blind": (22, 6), "chance": (31, 6)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A named curve, ready to draw.

    Attributes:
        name: Its name.
        colour: CSS class of its colour.
        raw: The points as logged.
        smooth: Their moving means.
    """

    name: str
    colour: str
    raw: Points
    smooth: Points


def build_lines(series: Series) -> list[Line]:
    """Return the curves that have a finite point; `total` takes the colour of the text.

    A curve without one keeps its colour, so that charts of the same names have the same colours.
    """
    lines = []
    colour = 0
    for name, points in series.items():
        finite = keep_finite(points)
        is_total = name == "total"
        css_class = "series-total" if is_total else f"series-{colour % NUM_COLOURS}"
        colour += not is_total
        if not finite:
            continue
        lines.append(Line(name=name, colour=css_class, raw=finite, smooth=smooth(finite)))
    return lines


def draw_curves(lines: Sequence[Line], label: str) -> Markup:
    """Return a chart of loss by step: raw curves faint, smoothed ones strong, names at the ends.

    Args:
        lines: At least one curve.
        label: What the chart shows, for those who cannot see it.
    """
    steps = [step for line in lines for step, _ in line.raw]
    values = [value for line in lines for _, value in line.smooth]
    x_axis = build_step_axis(int(min(steps)), int(max(steps)), PLOT_LEFT, PLOT_RIGHT)
    y_axis = build_value_axis(min(values), max(values), PLOT_BOTTOM, PLOT_TOP)
    attributes: dict[str, str | float] = {
        "class": "chart",
        "viewBox": f"0 0 {CHART_WIDTH} {CHART_HEIGHT}",
        "role": "img",
        "aria-label": label,
    }
    return element(
        "svg",
        attributes,
        *_draw_grid(x_axis, y_axis),
        _draw_paths(lines, x_axis, y_axis),
        *_draw_line_names(lines, y_axis),
    )


def draw_score(row: ScoreRow, scale: float) -> Markup:
    """Return a score as a bar from 0 to `scale` with its interval, above blind and chance.

    All horizontal positions are percentages, so the drawing is as wide as its cell.
    """
    parts = [element("rect", {"class": "track", "x": 0, "y": 7, "width": "100%", "height": 12})]
    for name, value in (("model", row.value), ("blind", row.blind), ("chance", row.chance)):
        if value is not None:
            top, height = _BAR_TOPS[name]
            size: dict[str, str | float] = {"width": _percent(value, scale), "height": height}
            parts.append(element("rect", {"class": f"bar-{name}", "x": 0, "y": top, **size}))
    low, high = _percent(row.low, scale), _percent(row.high, scale)
    parts.append(_segment("whisker", low, 13, high, 13))
    parts.extend(_segment("whisker", end, 9, end, 17) for end in (low, high))
    if row.aim is not None:
        end = _percent(row.aim, scale)
        parts.append(_segment("target", end, 2, end, 24))
    attributes: dict[str, str | float] = {"class": "score", "role": "img"}
    return element("svg", attributes | {"aria-label": describe_score(row)}, *parts)


def describe_score(row: ScoreRow) -> str:
    """Return a score as a sentence."""
    interval = f"95 % interval {format_score(row.low)} to {format_score(row.high)}"
    compared = [
        f"{name} {format_score(value)}"
        for name, value in (
            ("chance", row.chance),
            ("blind", row.blind),
            ("target", row.target),
            ("whole run", row.whole),
        )
        if value is not None
    ]
    return ", ".join([f"score {format_score(row.value)}", interval, *compared])


def draw_times(shares: Sequence[float], label: str) -> Markup:
    """Return one stacked bar; the parts have the colours `series-0`, `series-1` and so on.

    Args:
        shares: Parts of the whole, in order; they sum to 1.
        label: Accessible name of the bar.
    """
    parts, start = [], 0.0
    for index, share in enumerate(shares):
        position: dict[str, str | float] = {"x": _percent(start, 1), "width": _percent(share, 1)}
        css_class = f"series-{index % NUM_COLOURS}"
        parts.append(element("rect", {"class": css_class, **position, "y": 0, "height": "100%"}))
        start += share
    return element("svg", {"class": "times", "role": "img", "aria-label": label}, *parts)


def draw_boxes(phrases: Sequence[Grounding], width_px: int, height_px: int) -> Markup:
    """Return boxes to lay over an image: the model's solid, the true ones dashed, numbered from 1.

    Args:
        phrases: Phrases with boxes in pixels of the image.
        width_px: Width of the image.
        height_px: Its height.
    """
    unit = max(width_px, height_px) / 64
    parts: list[str] = []
    for number, (phrase, box_model, box_truth, iou) in enumerate(phrases, start=1):
        colour = "is-right" if iou >= RIGHT_IOU else "is-wrong"
        parts.append(_draw_box("box halo", box_truth, ""))
        parts.append(_draw_box("box truth", box_truth, f"{number}, true box: {phrase}"))
        if box_model is None:
            continue
        parts.append(_draw_box("box halo", box_model, ""))
        parts.append(_draw_box(f"box {colour}", box_model, f"{number}, model's box: {phrase}"))
        parts.append(_draw_badge(box_model, number, unit, colour, width_px))
    view = f"0 0 {width_px} {height_px}"
    return element("svg", {"class": "boxes", "viewBox": view, "aria-hidden": "true"}, *parts)


def _draw_grid(x_axis: Axis, y_axis: Axis) -> list[Markup]:
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.position(tick)
        parts.append(_segment("grid", PLOT_LEFT, y, PLOT_RIGHT, y))
        parts.append(_text("tick end", PLOT_LEFT - 7, y + 4, format_tick(tick)))
    for tick in x_axis.ticks:
        x = x_axis.position(tick)
        parts.append(_segment("axis", x, PLOT_BOTTOM, x, PLOT_BOTTOM + 4))
        parts.append(_text("tick middle", x, PLOT_BOTTOM + 18, format_tick(tick)))
    parts.append(_segment("axis", PLOT_LEFT, PLOT_BOTTOM, PLOT_RIGHT, PLOT_BOTTOM))
    scale = "loss, log scale" if y_axis.is_log else "loss"
    parts.append(_text("tick", 2, 11, scale))
    parts.append(_text("tick end", PLOT_RIGHT, CHART_HEIGHT - 3, "optimizer step"))
    return parts


def _draw_paths(lines: Sequence[Line], x_axis: Axis, y_axis: Axis) -> Markup:
    """Return the curves in a nested drawing, which clips them to the plot."""
    paths = [_path(f"raw {line.colour}", thin(line.raw), x_axis, y_axis) for line in lines]
    paths += [_path(f"smooth {line.colour}", thin(line.smooth), x_axis, y_axis) for line in lines]
    left, top = PLOT_LEFT, PLOT_TOP - 2
    width, height = PLOT_RIGHT - left + 2, PLOT_BOTTOM - top + 2
    position: dict[str, str | float] = {"x": left, "y": top, "width": width, "height": height}
    return element("svg", position | {"viewBox": f"{left} {top} {width} {height}"}, *paths)


def _path(css_class: str, points: Points, x_axis: Axis, y_axis: Axis) -> Markup:
    positions = [
        f"{format_coordinate(x_axis.position(step))},{format_coordinate(y_axis.position(value))}"
        for step, value in points
    ]
    line = positions[0] if len(positions) > 1 else f"{positions[0]} {positions[0]}"
    return element("path", {"class": css_class, "d": "M" + " ".join([line, *positions[1:]])})


def _draw_line_names(lines: Sequence[Line], y_axis: Axis) -> list[Markup]:
    if any(len(line.name) > _LONGEST_LABEL for line in lines):
        return []
    wanted = [y_axis.position(line.smooth[-1][1]) for line in lines]
    positions = spread(wanted, _LABEL_GAP_PX, PLOT_TOP + 4, PLOT_BOTTOM)
    return [
        _text(f"name {line.colour}", PLOT_RIGHT + 8, position + 4, line.name)
        for line, position in zip(lines, positions, strict=True)
    ]


def spread(wanted: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """Return positions near the wanted ones, at least `gap` apart, in the same order."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    positions = list(wanted)
    limit = top
    for index in order:
        positions[index] = max(positions[index], limit)
        limit = positions[index] + gap
    limit = bottom
    for index in reversed(order):
        positions[index] = min(positions[index], limit)
        limit = positions[index] - gap
    return positions


def _draw_box(css_class: str, box: Box, title: str) -> Markup:
    left, top, right, bottom = box
    position: dict[str, str | float] = {"x": left, "y": top}
    size: dict[str, str | float] = {"width": max(0, right - left), "height": max(0, bottom - top)}
    titles = [element("title", {}, title)] if title else []
    return element("rect", {"class": css_class, **position, **size}, *titles)


def _draw_badge(box: Box, number: int, unit: float, colour: str, width_px: int) -> Markup:
    side = 7 * unit
    left, top = min(max(box[0], 0), width_px - side), max(box[1] - side, 0)
    square: dict[str, str | float] = {"x": left, "y": top, "width": side, "height": side}
    middle: dict[str, str | float] = {"x": left + side / 2, "y": top + 5.3 * unit}
    digit = element("text", {**middle, "font-size": 5.4 * unit}, str(number))
    return element("g", {"class": f"badge {colour}"}, element("rect", square), digit)


def _segment(css_class: str, x1: str | float, y1: float, x2: str | float, y2: float) -> Markup:
    return element("line", {"class": css_class, "x1": x1, "y1": y1, "x2": x2, "y2": y2})


def _text(css_class: str, x: float, y: float, text: str) -> Markup:
    return element("text", {"class": css_class, "x": x, "y": y}, text)


def _percent(value: float, scale: float) -> str:
    return format_coordinate(100 * min(max(value / scale, 0.0), 1.0)) + "%"


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A linear or logarithmic axis.

    Attributes:
        low: Value at `start_px`.
        high: Value at `end_px`, above `low`.
        start_px: Coordinate of `low`.
        end_px: Coordinate of `high`; below `start_px` on an axis that points up.
        ticks: Values to mark, all within the axis.
        is_log: Whether distances are ratios.
    """

    low: float
    high: float
    start_px: float
    end_px: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def position(self, value: float) -> float:
        """Return a value's coordinate; on a log axis, 0 and less lie far below the low end."""
        if self.is_log:
            value = max(value, self.low / 1000)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start_px + share * (self.end_px - self.start_px)


def build_value_axis(lowest: float, highest: float, start_px: float, end_px: float) -> Axis:
    """Return an axis over the values, with round ends.

    It is logarithmic where the highest is 30 times the lowest or more. A linear one begins at 0,
    unless the values lie in the upper half of what it would show then.
    """
    if lowest > 0 and highest / lowest >= _LOG_FROM_RATIO:
        return _build_log_axis(lowest, highest, start_px, end_px)
    if 0 < lowest <= highest / 2 or lowest == highest > 0:
        lowest = 0.0
    step = round_step(highest - lowest, 5)
    first, last = math.floor(lowest / step + 1e-9), math.ceil(highest / step - 1e-9)
    last = max(last, first + 1)
    ticks = tuple(round(index * step, 12) for index in range(first, last + 1))
    return Axis(low=ticks[0], high=ticks[-1], start_px=start_px, end_px=end_px, ticks=ticks)


def build_step_axis(first: int, last: int, start_px: float, end_px: float) -> Axis:
    """Return a linear axis from the first to the last step, with round ticks between."""
    last = max(last, first + 1)
    step = max(1, round(round_step(last - first, 5)))
    ticks = tuple(float(tick) for tick in range(-(-first // step) * step, last + 1, step))
    return Axis(low=first, high=last, start_px=start_px, end_px=end_px, ticks=ticks)


def round_step(length: float, max_parts: int) -> float:
    """Return the least of 1, 2, 2.5, 5 times a power of ten; at most `max_parts` fill `length`."""
    if length <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(length / max_parts))
    return next(part * power for part in _ROUND if part * power * max_parts >= length * (1 - 1e-9))


def format_tick(value: float) -> str:
    """Return a tick's label: no needless zeros, thousands as k."""
    if abs(value) >= 10_000 and value % 100 == 0:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def _build_log_axis(lowest: float, highest: float, start_px: float, end_px: float) -> Axis:
    bottom, top = math.floor(math.log10(lowest)), math.ceil(math.log10(highest))
    fine = [part * 10.0**power for power in range(bottom, top + 1) for part in (1, 2, 5)]
    low = max(tick for tick in fine if tick <= lowest * (1 + 1e-9))
    high = min(tick for tick in fine if tick >= highest * (1 - 1e-9))
    ticks = [tick for tick in fine if low <= tick <= high]
    if len(ticks) > _MAX_LOG_TICKS:
        powers = [10.0**power for power in range(bottom, top + 1) if low <= 10.0**power <= high]
        ticks = powers[:: -(-len(powers) // _MAX_LOG_TICKS)]
    return Axis(
        low=low, high=high, start_px=start_px, end_px=end_px, ticks=tuple(ticks), is_log=True
    )


def element(
    name: str, attributes: Mapping[str, str | float] = _NO_ATTRIBUTES, *children: str
) -> Markup:
    """Return an element; children and attribute values that are not `Markup` are escaped.

    Args:
        name: Name of the tag.
        attributes: Values by name; a number is written with at most two decimals.
        *children: What stands between the tags.
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(
            key, value if isinstance(value, str) else format_coordinate(value)
        )
        for key, value in attributes.items()
    )
    inside = Markup("").join(map(escape, children))
    return Markup(f"<{name}{written}>{inside}</{name}>")


def format_coordinate(value: float) -> str:
    """Return a number with at most two decimals and no trailing zeros."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
