"""`triptych reproduce`: a table of a paper beside our numbers."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from triptych.cli.parsing import parse
from triptych.core.errors import ConfigError
from triptych.core.files import write_json

if TYPE_CHECKING:
    from triptych.papers.tables import PaperTable
    from triptych.workflows.reproduce import Reproduced

TABLE_FILE = "table.json"

HELP = """Reproduce a table of the mPLUG, VLMo or FLAVA paper, or say exactly what that needs.

Without TABLE, lists all tables. Each number of the paper stands beside ours, with the protocol, or
with the data files and the weights that are missing. The paper's numbers name where they were read:
the tables themselves were not at hand, and a number that no source gave is a dash. Rows of other
systems are excluded. With --scenes, the built-in scenes stand in for every data set: models are
pre-trained and fine-tuned on them, and the rows say so.

Examples:
  triptych reproduce
  triptych reproduce mplug.table3
  triptych reproduce flava.table4 --data /datasets --weights flava-full --only "FLAVA, all"
  triptych reproduce vlmo.table5 --scenes --scale tiny
  triptych reproduce mplug.table11
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReproduceOptions:
    """What to reproduce, from what.

    Attributes:
        table: Such as mplug.table2; all are listed if absent.
        data: Folder of the data sets, as `triptych suite` takes it.
        weights: A model folder, or a released checkpoint, of the size that the row names.
        tokenizer: Vocabulary of a released checkpoint, such as vocab.txt.
        models: Folder of fine-tuned models, as `triptych suite` takes it.
        train: Fine-tune the weights where --models lacks a model.
        scenes: Let the built-in scenes stand in for every data set.
        scale: Scale of the recipes; base if absent, with --scenes tiny.
        only: Take only the systems whose name holds this.
        out: Receives models and table.json; runs/reproduce/TABLE if absent.
        results: Folder of stored benchmark outputs, for tables of speed and memory.
        limit: Use only so many records of each part.
        max_steps: Fine-tune for so many steps at most.
        num_threads: CPU threads of training; if absent, torch chooses.
        json: Print JSON instead of a table.
    """

    table: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="TABLE")]] = None
    data: Path | None = None
    weights: Path | None = None
    tokenizer: Path | None = None
    models: Path | None = None
    train: bool = False
    scenes: bool = False
    scale: Literal["smoke", "tiny", "small", "base", "large"] | None = None
    only: str = ""
    out: Path | None = None
    results: Path = Path("benchmarks/results")
    limit: int | None = None
    max_steps: int | None = None
    num_threads: int | None = None
    json: bool = False


def run(arguments: Sequence[str]) -> int:
    """List the tables, or reproduce one."""
    options = parse(ReproduceOptions, arguments, verb="reproduce", description=HELP)
    from triptych.papers.tables import all_tables, find_table

    if options.table is None:
        for table in all_tables().values():
            print(f"{table.full_name:<18} {table.title}")
        return 0
    table = find_table(options.table)
    if options.scenes and options.data is not None:
        raise ConfigError("--scenes stands in for --data: give one of them")
    if options.data is not None and not options.data.is_dir():
        raise ConfigError(f"--data {options.data}: there is no such folder")
    if options.models is not None and not options.models.is_dir():
        raise ConfigError(f"--models {options.models}: there is no such folder")
    out = options.out or Path("runs") / "reproduce" / table.full_name
    rows = _reproduce(table, options, out)
    content = {
        "table": table.full_name,
        "title": table.title,
        "note": table.note,
        "rows": [asdict(row) for row in rows],
    }
    if options.json:
        print(json_module.dumps(content, ensure_ascii=False))
    else:
        print_table(table, rows)
    if any(row.ours is not None for row in rows):
        write_json(out / TABLE_FILE, content)
        print(f"wrote {out / TABLE_FILE}", file=sys.stderr)
    return 0


def _reproduce(table: PaperTable, options: ReproduceOptions, out: Path) -> list[Reproduced]:
    from triptych.workflows.official_data import BenchmarkData, OfficialData, SceneData
    from triptych.workflows.reproduce import SCENES_FOLDER, Request, reproduce
    from triptych.workflows.scoring import Scoring

    scale = options.scale or ("tiny" if options.scenes else "base")
    data: BenchmarkData = OfficialData(options.data or Path("ROOT"))
    if options.scenes:
        data = SceneData(out / SCENES_FOLDER, scale)
    scoring = Scoring(
        data=data,
        out=out,
        models=options.models,
        train=options.train or options.scenes,
        scale=scale,
        limit=options.limit,
        max_steps=options.max_steps,
        num_threads=options.num_threads,
    )
    request = Request(
        scoring=scoring,
        root=options.data,
        scenes=options.scenes,
        weights=options.weights,
        tokenizer=options.tokenizer,
        only=options.only,
        results=options.results,
        tell=lambda text: print(text, file=sys.stderr),
    )
    return reproduce(table, request)


def print_table(table: PaperTable, rows: Sequence[Reproduced]) -> None:
    """Print the paper's numbers beside ours, and under them what is missing."""
    from rich.table import Table

    from triptych.core.console import Console

    console = Console(highlight=False)
    console.print(f"[bold]{table.full_name}[/bold]: {table.title}", soft_wrap=True)
    if table.note:
        console.print(table.note, style="dim", markup=False)
    reasons = list(dict.fromkeys(reason for row in rows for reason in row.reasons))
    with_interval = any(row.low is not None for row in rows)
    names = ["", "paper", "ours", *(["95 % interval"] if with_interval else []), "needs"]
    width = max((len(row.what) + 2 for row in rows), default=0)
    for model in dict.fromkeys(row.model for row in rows):
        console.print(model, style="bold", markup=False, soft_wrap=True)
        grid = Table(*names, box=None, pad_edge=False)
        for row in (row for row in rows if row.model == model):
            has_interval = row.low is not None and row.high is not None
            digits = 3 if has_interval and abs(row.high or 0) <= 1 else 1
            interval = f"{row.low:.{digits}f} to {row.high:.{digits}f}" if has_interval else ""
            cells = [f"  {row.what}", _number(row.paper), _number(row.ours)]
            cells += [interval] if with_interval else []
            grid.add_row(*cells, " ".join(f"({reasons.index(r) + 1})" for r in row.reasons))
        for column in grid.columns[:-1]:  # numbers stay whole, and "needs" takes further lines
            column.no_wrap = True
        grid.columns[0].min_width = width
        grid.columns[-1].overflow = "fold"
        console.print(grid)
    for number, reason in enumerate(reasons, start=1):
        console.print(f"({number}) {reason}", markup=False, soft_wrap=True)
    for protocol in dict.fromkeys(row.protocol for row in rows if row.protocol):
        console.print(f"ours: {protocol}", style="dim", markup=False, soft_wrap=True)
    read = dict.fromkeys(row.source for row in rows if row.paper is not None)
    for source in read:
        console.print(f"paper's numbers: {source}", style="dim", markup=False, soft_wrap=True)


def _number(value: float | None) -> str:
    """Return a number as the papers print it; small settings in powers of ten."""
    if value is None:
        return "–"
    if value != 0 and abs(value) < 0.001:
        return f"{value:.0e}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:g}" if round(value, 2) == value else f"{value:.2f}"
