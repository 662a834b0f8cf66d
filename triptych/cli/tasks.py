"""`triptych tasks`: which family of models can do which task, and what trains and scores it."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from triptych.cli.parsing import parse
from triptych.core.errors import ConfigError

if TYPE_CHECKING:
    from triptych.tasks.matrix import Cell

HELP = """List which family of models can do which task: the recipe that trains it, the name that
`triptych eval --task` knows it by, and why it is impossible where it is.

Examples:
  triptych tasks
  triptych tasks --json
  triptych tasks --markdown > tasks.md
"""

EXAMPLES: dict[str, Any] = {
    "image": "a.jpg",
    "images": ["a.jpg", "b.jpg"],
    "video": "a.mp4",
    "mask": "a.png",
    "answers": ["..."],
    "box": ["x", "y", "w", "h"],
}
"""Values of a manifest's fields; "..." where there is none."""

NONE = "–"
PRETRAINING = "pretraining"

WIDTH = 128
"""Least width of the table in the terminal, in characters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TasksOptions:
    """How to list.

    Attributes:
        json: Print one JSON object: every cell, and their number.
        markdown: Print a Markdown table.
    """

    json: bool = False
    markdown: bool = False


def run(arguments: Sequence[str]) -> int:
    """Print the table."""
    options = parse(TasksOptions, arguments, verb="tasks", description=HELP)
    if options.json and options.markdown:
        raise ConfigError("--json and --markdown are two forms of one table: choose one")
    from triptych.tasks.matrix import task_matrix

    cells = task_matrix()
    if options.json:
        print(json_module.dumps(matrix_json(cells), indent=2))
    elif options.markdown:
        print(matrix_markdown(cells))
    else:
        _print_table(cells)
    return 0


def _print_table(cells: Sequence[Cell]) -> None:
    from rich.table import Table

    from triptych.core.console import Console
    from triptych.tasks.matrix import matrix_rows

    console = Console()
    console.width = max(console.width, WIDTH)  # names are not cut, lines of a narrow window fold
    table = Table("task", "eval --task", *dict.fromkeys(cell.title for cell in cells))
    for row in matrix_rows(cells):
        told = ["\n".join(_names(cell)) or NONE for cell in row]
        table.add_row(row[0].name, row[0].evaluation, *told)
    console.print(table)
    lines = ["* is zero-shot: a model of this recipe is scored without fine-tuning for it."]
    lines += [f"{NONE} {reason}: {tasks}." for reason, tasks in _reasons(cells).items()]
    lines.append(f"{sum(cell.is_possible for cell in cells)} of {len(cells)} cells are possible.")
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _names(cell: Cell) -> list[str]:
    return [*cell.recipes, *(f"{name}*" for name in cell.zero_shot)]


def _reasons(cells: Sequence[Cell]) -> dict[str, str]:
    """Return the impossible tasks by their reason."""
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        if cell.reason is not None:
            found.setdefault(cell.reason, {})[cell.name] = None
    return {reason: ", ".join(tasks) for reason, tasks in found.items()}


def matrix_json(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the cells as JSON values, and how many are possible."""
    rows = [
        {
            "task": cell.task,
            "evaluation": cell.evaluation,
            "clips": cell.clips,
            "family": cell.family,
            "possible": cell.is_possible,
            "recipes": list(cell.recipes),
            "zero_shot": list(cell.zero_shot),
            "needs": list(cell.needs),
            "scored_on": list(cell.scored_on),
            "serves": list(cell.serves),
            "reason": cell.reason,
        }
        for cell in cells
    ]
    possible = sum(cell.is_possible for cell in cells)
    return {"matrix_cells": possible, "impossible": len(cells) - possible, "cells": rows}


def matrix_markdown(cells: Sequence[Cell]) -> str:
    """Return a Markdown table: a row a task and score, a column a family, with the reasons."""
    from triptych.tasks.matrix import matrix_rows

    titles = list(dict.fromkeys(cell.title for cell in cells))
    lines = [f"| task | `eval --task` | a line to be scored | {' | '.join(titles)} | HTTP |"]
    lines.append("|---" * (4 + len(titles)) + "|")
    for row in matrix_rows(cells):
        first = next((cell for cell in row if cell.recipes), row[0])
        start = [f"`{first.evaluation}`", f"`{manifest_line(first.scored_on)}`"]
        told = [_markdown_cell(cell) for cell in row]
        lines.append(f"| {' | '.join([first.name, *start, *told, http_routes(first)])} |")
    return "\n".join(lines)


def _markdown_cell(cell: Cell) -> str:
    if cell.reason is not None:
        return f"impossible: {cell.reason}"
    told = [f"`{name}`" for name in cell.recipes]
    if cell.zero_shot:
        told.append("zero-shot after " + " or ".join(f"`{name}`" for name in cell.zero_shot))
    return ", ".join(told)


def overview_markdown(cells: Sequence[Cell]) -> str:
    """Return README's table: stages of pre-training, then tasks, each with its recipes."""
    from triptych.cli.main import VERBS
    from triptych.tasks.matrix import pretraining_stages

    titles = {cell.family: cell.title for cell in cells}
    lines = [f"| task | a line of the manifest | {' | '.join(titles.values())} | command | HTTP |"]
    lines.append("|---" * (4 + len(titles)) + "|")
    for stage in pretraining_stages():
        told = [_recipe_names(stage.recipes.get(family, ())) for family in titles]
        line, own = f"`{manifest_line(stage.needs)}`", stage.trained_for
        name = own if own == PRETRAINING else f"{PRETRAINING}, {own}"  # a task may be called so too
        lines.append(f"| {' | '.join([name, line, *told, '', ''])} |")
    tasks: dict[str, list[Cell]] = {}
    for cell in cells:
        tasks.setdefault(cell.name, []).append(cell)
    for name, of_task in tasks.items():
        first = next((cell for cell in of_task if cell.recipes), of_task[0])
        told = [
            _recipe_names(
                [
                    recipe
                    for cell in of_task
                    if cell.family == family
                    for recipe in cell.recipes or cell.zero_shot
                ]
            )
            for family in titles
        ]
        verbs = ", ".join(method for method in first.serves if method in VERBS)
        line = f"`{manifest_line(first.needs)}`"
        lines.append(f"| {' | '.join([name, line, *told, verbs, http_routes(first)])} |")
    return "\n".join(lines)


def http_routes(cell: Cell) -> str:
    """Return the routes of `triptych serve` that a cell's model answers; it takes no clips."""
    from triptych.serving.verbs import VERBS

    served = () if cell.clips else cell.serves
    names = [verb.name for verb in VERBS.values() if verb.capability in served]
    return ", ".join(f"`/v1/{name}`" for name in names)


def _recipe_names(recipes: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(recipes)) or NONE


def manifest_line(needs: Sequence[str]) -> str:
    """Return a line of a manifest with the fields of `needs`, such as {"image": "a.jpg"}."""
    first = [need.split("|")[0] for need in needs]
    values = EXAMPLES | ({"label": True} if "statement" in first else {})
    line = json_module.dumps({name: values.get(name, "...") for name in first})
    return line.replace('["x", "y", "w", "h"]', "[x, y, w, h]")
