"""The table of scores in the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from triptych.report.data import ScoreRow
from triptych.report.numbers import format_score


def print_scores(rows: Iterable[ScoreRow], console: Console) -> None:
    """Print each score with its 95 % interval, beside chance, the blind baseline and its bar.

    Args:
        rows: The scores, in the order to show; a rule separates the tasks.
        console: Where to print.
    """
    table = Table(title="Scores", title_justify="left", header_style="bold")
    for name in ("task", "metric", "split"):
        table.add_column(name, overflow="fold")
    for name in ("score", "95 % interval", "chance", "blind", "bar"):
        table.add_column(name, justify="right", no_wrap=True)
    task = None
    for row in rows:
        if task not in (None, row.task):
            table.add_section()
        table.add_row(Text("" if row.task == task else row.task), *_cells(row))
        task = row.task
    console.print(table)


def _cells(row: ScoreRow) -> list[Text]:
    return [
        Text(row.metric),
        Text(row.split),
        Text(format_score(row.value), style="bold"),
        Text(f"{format_score(row.low)} to {format_score(row.high)}"),
        Text(format_score(row.chance), style="dim"),
        Text(format_score(row.blind), style="dim"),
        _bar_cell(row),
    ]


def _bar_cell(row: ScoreRow) -> Text:
    if row.bar is None:
        return Text("–", style="dim")
    text = f"{format_score(row.bar)} {'reached' if row.reached else 'missed'}"
    return Text(text, style="green" if row.reached else "red")
