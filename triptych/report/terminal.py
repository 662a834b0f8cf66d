"""The table of scores in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from triptych.core.console import Console
from triptych.report.data import ScoreRow, format_score

NUMBERS = ("score", "95 % interval", "chance", "blind", "target")
"""Of a part of a run, `WHOLE` stands in place of the target."""
WHOLE = "whole demo"
DROPPED_COLUMNS = ((), ("95 % interval",), ("95 % interval", "chance"), (*NUMBERS[1:], WHOLE))
"""Columns dropped where the terminal is narrow, tried in this order."""


def print_scores(rows: Iterable[ScoreRow], console: Console) -> None:
    """Print each score with its 95 % interval, with chance, the blind baseline and its target.

    Where the table with rules is too wide, each task becomes a heading above its scores, without
    rules; if that is still too wide, the interval is dropped, then chance. Names never wrap.

    Args:
        rows: The scores, in the order to show; rows of a task follow each other.
        console: Where to print.
    """
    rows = list(rows)
    tables = [_ruled(rows), *(_compact(rows, without) for without in DROPPED_COLUMNS)]
    unbounded = console.options.update(max_width=10_000)
    widths = [console.measure(table, options=unbounded).maximum for table in tables]
    pairs = zip(tables, widths, strict=True)
    console.print(next((table for table, width in pairs if width <= console.width), tables[-1]))


def _ruled(rows: Sequence[ScoreRow]) -> Table:
    table = Table(title="Scores", title_justify="left", header_style="bold")
    shown = _shown(rows)
    _add_columns(table, ("task", "metric", "split"), shown)
    task = None
    for row in rows:
        if task not in (None, row.task):
            table.add_section()
        names = "" if row.task == task else row.task, row.metric, row.split
        table.add_row(*map(Text, names), *_numbers(row, shown))
        task = row.task
    return table


def _shown(rows: Sequence[ScoreRow]) -> list[str]:
    """Return the columns of numbers."""
    is_part = any(row.whole is not None for row in rows)
    return [WHOLE if is_part and name == "target" else name for name in NUMBERS]


def _compact(rows: Sequence[ScoreRow], without: Sequence[str]) -> Table:
    table = Table(
        title="Scores",
        title_justify="left",
        header_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    shown = [name for name in _shown(rows) if name not in without]
    _add_columns(table, ("metric", "split"), shown)
    task = None
    for row in rows:
        if row.task != task:
            table.add_row(Text(row.task, style="bold"))
        table.add_row(Text(row.metric), Text(row.split), *_numbers(row, shown))
        task = row.task
    return table


def _add_columns(table: Table, names: Sequence[str], numbers: Sequence[str]) -> None:
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)


def _numbers(row: ScoreRow, names: Sequence[str]) -> list[Text]:
    cells = {
        "score": Text(format_score(row.value), style="bold"),
        "95 % interval": Text(f"{format_score(row.low)} to {format_score(row.high)}"),
        "chance": Text(format_score(row.chance), style="dim"),
        "blind": Text(format_score(row.blind), style="dim"),
        "target": _target_cell(row),
        WHOLE: Text(format_score(row.whole), style="dim"),
    }
    return [cells[name] for name in names]


def _target_cell(row: ScoreRow) -> Text:
    if row.target is None:
        return Text("–", style="dim")
    text = f"{format_score(row.target)} {'met' if row.met else 'not met'}"
    return Text(text, style="green" if row.met else "red")
