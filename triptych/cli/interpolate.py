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

Without --guard it is the best on the task of the fine-tuning, which AFTER names. With --guard it is
the best on the guarded data among those that lose at most --tolerance on that task.

Examples:
  triptych interpolate runs/mine/model runs/vqa/model --data val.jsonl --out models/vqa
  triptych interpolate runs/mine/model runs/vqa/model --data val.jsonl \\
      --guard pairs.jsonl --out models/vqa
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class InterpolateOptions:
    """What to sweep.

    Attributes:
        before: The model folder that was fine-tuned.
        after: The model folder that the fine-tuning left.
        data: Held-out data of that task.
        source: How it is read.
        task: The task of the fine-tuning, as for triptych eval; that of AFTER if absent.
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
    data: Annotated[str, tyro.conf.arg(metavar="PATH")]
    source: SourceGroup = field(default_factory=SourceOptions)
    task: Annotated[str | None, tyro.conf.arg(metavar="TASK")] = None
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
    from triptych.workflows.interpolate import (
        HeldOut,
        choose,
        open_line,
        own_task,
        sweep,
        write_blend,
    )

    line = open_line(options.before, options.after)
    own = HeldOut(
        task=options.task or own_task(line.last),
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
        plain = {"task": own.task, "chosen": chosen.alpha}
        plain |= {"points": [asdict(point) for point in points]}
        print(json.dumps(plain | {"model": None if options.out is None else str(options.out)}))
    else:
        print("\n".join(["", *curves(points, chosen), ""]))
        print(f"chosen: {said}" + ("" if options.out is None else f"; model: {options.out}"))
    return 0


HEIGHT = 9
"""Lines of the drawing of the curves."""


def curves(points: Sequence[Point], chosen: Point) -> list[str]:
    """Draw both scores over alpha, each from its lowest to its highest value.

    Args:
        points: Of the sweep.
        chosen: One of them, whose alpha is marked.
    """
    listed = sorted(points, key=lambda point: point.alpha)
    series = {"o": [point.own for point in listed]}
    guards = [point.guard for point in listed if point.guard is not None]
    if guards:
        series["+"] = guards
    rows = [[" "] * len(listed) for _ in range(HEIGHT)]
    legend = []
    for mark, values in series.items():
        low, high = min(v.value for v in values), max(v.value for v in values)
        legend.append(f"{mark} {values[0].name} from {low:.4f} to {high:.4f}")
        for column, value in enumerate(values):
            share = (value.value - low) / (high - low) if high > low else 1.0
            row = rows[round((1 - share) * (HEIGHT - 1))]
            row[column] = mark if row[column] == " " else "*"
    lines = ["  |" + "".join(f"{mark:^6}" for mark in row).rstrip() for row in rows]
    axis = "".join(f"{point.alpha:^6g}" for point in listed)
    arrow = "".join(f"{'^' if point.alpha == chosen.alpha else '':^6}" for point in listed)
    return [*lines, f"   {axis}  alpha", f"   {arrow.rstrip()} chosen", *legend, "* both"]


def _print_point(point: Point) -> None:
    print(f"alpha {point.alpha:<5g}{_scores(point)}")


def _scores(point: Point) -> str:
    values = [point.own] if point.guard is None else [point.own, point.guard]
    return ", ".join(f"{v.name} {v.value:.4f} ({v.low:.4f} to {v.high:.4f})" for v in values)
