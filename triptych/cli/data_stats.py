"""`triptych data stats`: the papers' table of data, with the numbers of the data at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from triptych.cli.parsing import (
    ResultGroup,
    ResultOptions,
    SourceGroup,
    SourceOptions,
    json_as_out,
    parse,
    shows_progress,
)
from triptych.core.errors import ConfigError
from triptych.data.source import DataSourceConfig

if TYPE_CHECKING:
    from triptych.data.stats import SourceStats

HELP = """Count the images, pairs and words of datasets, by source and in total.

Images are counted by their names and not opened; the total counts an image once that two sources
name alike. Memory does not grow with the data.

Examples:
  triptych data stats coco/dataset_coco.json --split train
  triptych data stats mine=a.jsonl shards --out table.json
  triptych data stats mplug.pretrain_14m --root /datasets
"""


PLURALS = {
    "question": "questions",
    "phrase": "phrases",
    "statement": "statements",
    "hypothesis": "hypotheses",
    "label": "labels",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StatsOptions:
    """What to count.

    Attributes:
        paths: Datasets, each as `data check` takes it, or NAME=PATH; or recipes that name their
            data.
        source: How paths are read.
        root: Folder that relative paths start from; if absent, the current folder.
        result: Where the numbers go.
    """

    paths: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH...")]]
    source: SourceGroup = field(default_factory=SourceOptions)
    root: str | None = None
    result: ResultGroup = field(default_factory=ResultOptions)


def run(arguments: Sequence[str]) -> int:
    """Print the table, or JSON; and write JSON where asked."""
    options = parse(StatsOptions, json_as_out(arguments), verb="data stats", description=HELP)
    if not options.paths:
        raise ConfigError("name the datasets to count: triptych data stats PATH...")
    sources = [
        found.under(options.root) for path in options.paths for found in _read(path, options)
    ]
    rows = _count(sources)
    if not options.result.json:
        _print(rows)
    options.result.report(
        {"sources": [row.to_dict() for row in rows[:-1]], "total": rows[-1].to_dict()}
    )
    return 0


def _read(path: str, options: StatsOptions) -> Iterator[DataSourceConfig]:
    """Yield the source of a path, or the sources of a recipe."""
    from triptych.recipes.registry import RECIPES, build_recipe

    if path in RECIPES and not Path(path).exists():
        sources = build_recipe(path, "base").data.train
        if not sources:
            raise ConfigError(f"the recipe {path} names no data: give paths")
        yield from sources
        return
    name, is_named, rest = path.partition("=")
    if is_named and not Path(path).exists() and "/" not in name:
        yield replace(options.source.source(rest), name=name)
    else:
        yield options.source.source(path)


def _count(sources: Sequence[DataSourceConfig]) -> list[SourceStats]:
    """Count under a progress bar."""
    from rich.progress import Progress

    from triptych.core.console import Console
    from triptych.data.stats import collect_stats

    with Progress(
        "{task.description}",
        console=Console(stderr=True),
        transient=True,
        disable=not shows_progress(),
    ) as progress:
        bar = progress.add_task("reading", total=None)
        return collect_stats(
            sources,
            lambda name, done: progress.update(bar, description=f"{name}: {done:,} records"),
        )


def _print(rows: Sequence[SourceStats]) -> None:
    """Print the table without the columns that no source has, and the total of several."""
    from rich.table import Table
    from rich.text import Text

    from triptych.core.console import Console

    total = rows[-1]
    columns: dict[str, Callable[[SourceStats], str]] = {
        "images": lambda row: _whole(row.num_images),
        "pairs": lambda row: _whole(row.num_pairs),
        "words per caption": lambda row: _mean(row.words_per_caption),
        "texts": lambda row: _whole(row.num_texts),
        "words per text": lambda row: _mean(row.words_per_text),
        "skipped": lambda row: _whole(row.num_skipped),
    }
    for name in total.others:
        columns[PLURALS[name]] = partial(_other, name)
    shown = {name: cell for name, cell in columns.items() if cell(total) not in ("0", "")}
    table = Table("source", *shown, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows if len(rows) > 2 else rows[:1]:
        if row is total:
            table.add_section()
        table.add_row(Text(row.name), *(cell(row) for cell in shown.values()))
    Console(highlight=False).print(table)


def _other(name: str, row: SourceStats) -> str:
    return _whole(row.others[name])


def _whole(number: int) -> str:
    return f"{number:,}"


def _mean(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
