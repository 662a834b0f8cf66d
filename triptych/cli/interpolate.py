"""`triptych interpolate`: between a model before and after fine-tuning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from triptych.cli.parsing import SourceGroup, SourceOptions, parse
from triptych.core.errors import ConfigError

if TYPE_CHECKING:
    from triptych.workflows.interpolate import Point

HELP = """Sweep the line from a model to its fine-tuned one (WiSE-FT), and keep a point on it.

Without --guard it is the best on the task of the fine-tuning. With --guard it is the best on the
guarded data among those that lose at most --tolerance on that task.

Examples:
  triptych interpolate runs/mine/model runs/vqa/model --task vqa --data val.jsonl --out models/vqa
  triptych interpolate runs/mine/model runs/vqa/model --task vqa --data val.jsonl \\
      --guard pairs.jsonl --out models/vqa
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class InterpolateOptions:
    """What to sweep.

    Attributes:
        before: The model folder that was fine-tuned.
        after: The model folder that the fine-tuning left.
        task: The task of the fine-tuning, as for triptych eval.
        data: Held-out data of that task.
        source: How it is read.
        metric: The score that counts; if absent, the first that triptych eval prints.
        guard: Held-out data of what should be preserved.
        guard_source: How that is read.
        guard_task: What it is scored by.
        guard_metric: The score of it that counts; if absent, the first.
        alphas: Places on the line: 0 is the model before, 1 the one after.
        tolerance: With --guard: what the task of the fine-tuning may lose, in its own unit.
        limit: Use only this many records of each, from the start.
        out: The model folder to write; if absent, the table is printed alone.
        json: Print JSON instead of a table.
    """

    before: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="BEFORE")]]
    after: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="AFTER")]]
    task: Annotated[str, tyro.conf.arg(metavar="TASK")]
    data: Annotated[str, tyro.conf.arg(metavar="PATH")]
    source: SourceGroup = field(default_factory=SourceOptions)
    metric: str | None = None
    guard: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    guard_source: Annotated[SourceOptions, tyro.conf.arg(name="guard")] = field(
        default_factory=SourceOptions
    )
    guard_task: str = "retrieval"
    guard_metric: str | None = None
    alphas: tuple[float, ...] = tuple(number / 10 for number in range(11))
    tolerance: float = 0.01
    limit: int | None = None
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    json: bool = False


def run(arguments: Sequence[str]) -> int:
    """Sweep, print a row a point, and write the chosen model."""
    options = parse(InterpolateOptions, arguments, verb="interpolate", description=HELP)
    if not options.alphas:
        raise ConfigError("alphas: name at least one place, 0 to 1")
    if options.tolerance < 0:
        raise ConfigError(f"tolerance = {options.tolerance}: must be at least 0")
    if options.guard is None and options.guard_source != SourceOptions():
        raise ConfigError("flags of --guard say how its data are read: name them with --guard PATH")
    from triptych.workflows.interpolate import HeldOut, choose, open_line, sweep, write_blend

    own = HeldOut(
        task=options.task,
        source=options.source.source(options.data),
        metric=options.metric,
        limit=options.limit,
    )
    guard = None
    if options.guard is not None:
        guard = HeldOut(
            task=options.guard_task,
            source=options.guard_source.source(options.guard),
            metric=options.guard_metric,
            limit=options.limit,
        )
    line = open_line(options.before, options.after)
    points = sweep(
        line,
        own,
        guard,
        alphas=options.alphas,
        on_point=None if options.json else _print_point,
    )
    chosen = choose(points, options.tolerance)
    said = f"alpha {chosen.alpha:g}: {_scores(chosen)}"
    if options.out is not None:
        note = f"Between `{options.before}` and `{options.after}`, {said}."
        write_blend(line, chosen.alpha, options.out, note)
    if options.json:
        plain = {"chosen": chosen.alpha, "points": [asdict(point) for point in points]}
        print(json.dumps(plain | {"model": None if options.out is None else str(options.out)}))
    else:
        print(f"chosen: {said}" + ("" if options.out is None else f"; model: {options.out}"))
    return 0


def _print_point(point: Point) -> None:
    print(f"alpha {point.alpha:<5g}{_scores(point)}")


def _scores(point: Point) -> str:
    values = [point.own] if point.guard is None else [point.own, point.guard]
    return ", ".join(f"{v.name} {v.value:.4f} ({v.low:.4f} to {v.high:.4f})" for v in values)
