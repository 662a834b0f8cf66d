"""The results of a study as an HTML page, and as tables in the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table
from rich.text import Text

from triptych.core.console import Console
from triptych.core.errors import DataError
from triptych.lab.definition import PROCESSOR_TIME, STEP_FLOPS, STEP_TIME
from triptych.lab.plan import MAIN, Plan
from triptych.report.curves import read_curves
from triptych.report.data import Series
from triptych.report.html import Chart, draw_charts
from triptych.report.study import StudyPage, StudyRow, write_study_page
from triptych.train.metrics_log import METRICS_FILE

PAGE_FILE = "report.html"

COST_NAMES = {
    STEP_TIME: "s/step",
    PROCESSOR_TIME: "CPU s/step",
    STEP_FLOPS: "FLOPs/sample",
}


def read_study_curves(plan: Plan) -> dict[str, Series]:
    """Return the curves of each loss: of each variant the mean over its seeds."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for variant in plan.study.variants:
        runs: dict[str, dict[int, list[float]]] = {}
        for seed in range(plan.settings.seeds):
            path = plan.variant_folder(variant.name, seed) / MAIN / METRICS_FILE
            try:
                curves = read_curves(path)
            except DataError:  # the variant failed before its first step
                continue
            for loss, points in curves.items():
                for step, value in points:
                    runs.setdefault(loss, {}).setdefault(step, []).append(value)
        for loss, by_step in runs.items():
            points = [(step, statistics.fmean(values)) for step, values in by_step.items()]
            found.setdefault(loss, {})[variant.name] = points
    names = [variant.name for variant in plan.study.variants]
    losses = sorted(found, key=lambda name: name == "total")
    return {loss: {name: found[loss].get(name, []) for name in names} for loss in losses}


def write_page(results: Mapping[str, Any], plan: Plan, path: Path) -> None:
    """Write a study's page; it loads nothing from anywhere.

    Args:
        results: What `gather_results` returned.
        plan: The study, for the curves of its runs.
        path: The file to write.
    """
    definition = yaml.safe_dump(results["definition"], sort_keys=False, allow_unicode=True)
    charts: list[Chart] = draw_charts(read_study_curves(plan))
    page = StudyPage(
        title=results["title"],
        lines=tuple(filter(None, (results["question"], results["protocol"]))),
        notes=tuple(results["notes"]),
        comparisons=tuple(_pair_row(pair) for pair in results["comparisons"]),
        scores=_score_rows(results),
        costs=_cost_rows(results),
        failed=dict(results["failed"]),
        charts=tuple(charts),
        facts={**results["machine"], "commit": results["commit"]},
        definition=definition,
    )
    write_study_page(page, path)


def _pair_row(pair: Mapping[str, Any]) -> StudyRow:
    paper = pair["paper"]
    return StudyRow(
        name=f"{pair['first']} minus {pair['second']}",
        what=COST_NAMES.get(pair["score"], pair["score"]),
        mean=pair["mean"],
        low=pair["low"],
        high=pair["high"],
        number=say(pair["mean"], pair["score"]),
        interval=say_interval(pair, pair["score"]),
        verdict=pair["verdict"],
        says="" if paper is None else paper["says"],
        source="" if paper is None else paper["source"],
        is_main=pair["main"],
    )


def _score_rows(results: Mapping[str, Any]) -> tuple[StudyRow, ...]:
    rows = []
    for score in next(iter(results["variants"].values()))["scores"]:
        for name, variant in results["variants"].items():
            found = variant["scores"][score] or {"mean": None, "low": None, "high": None}
            rows.append(
                StudyRow(
                    name=name,
                    what=score,
                    mean=found["mean"],
                    low=found["low"],
                    high=found["high"],
                    number=say(found["mean"], score),
                    interval=say_interval(found, score),
                    says=variant["about"],
                )
            )
    return tuple(rows)


def _cost_rows(results: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Return the head and a row a variant."""
    head = ("variant", "steps", "samples", "FLOPs", *COST_NAMES.values())
    rows = [head]
    for name, variant in results["variants"].items():
        cost = variant["cost"]
        means = [None if cost[key] is None else cost[key]["mean"] for key in COST_NAMES]
        rows.append(
            (
                name,
                _whole(cost["steps"]),
                _whole(cost["samples"]),
                say(cost["flops"], STEP_FLOPS),
                *(say(mean, key) for mean, key in zip(means, COST_NAMES, strict=True)),
            )
        )
    return tuple(rows)


def _whole(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def say(value: float | None, score: str) -> str:
    """Return a number as a table shows it: scores with four digits, costs with three."""
    if value is None:
        return "–"
    return f"{value:.3g}" if score in COST_NAMES else f"{value:.4f}"


def say_interval(found: Mapping[str, Any], score: str) -> str:
    """Return the ends of an interval; of one seed there are none."""
    if found["low"] is None:
        return "one seed: no interval" if found["mean"] is not None else "nothing to compare"
    return f"{say(found['low'], score)} to {say(found['high'], score)}"


# ----------------------------------------------------------------------------------- the terminal


def print_results(results: Mapping[str, Any], console: Console) -> None:
    """Print the scores of each variant, the comparisons, the costs, and what failed."""
    console.print(Text(results["title"], style="bold"))
    table = _table("Scores", ("variant", "score", "mean", "95 % interval"), numbers=2)
    for row in _score_rows(results):
        table.add_row(*map(Text, (row.name, row.what, row.number, row.interval)))
    console.print(table)
    columns = ("first minus second", "score", "difference", "95 % interval", "paper")
    table = _table("Paired differences", columns, numbers=3)
    for pair in map(_pair_row, results["comparisons"]):
        verdict = Text(pair.verdict or "–", style=STYLES.get(pair.verdict or "", ""))
        table.add_row(pair.name, pair.what, pair.number, pair.interval, verdict)
    console.print(table)
    head, *rows = _cost_rows(results)
    table = _table("Cost", head, numbers=1)
    for cells in rows:
        table.add_row(*map(Text, cells))
    console.print(table)
    for pair in map(_pair_row, results["comparisons"]):
        if pair.says:
            said = f"{pair.verdict or 'cannot tell'}: {pair.says} ({pair.source})"
            console.print(said, markup=False, highlight=False, soft_wrap=True)
    for line in (results["protocol"], *results["notes"]):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for name, why in results["failed"].items():
        console.print(Text(f"failed: {name}: {why}", style="red"), soft_wrap=True)


STYLES = {"agrees": "green", "disagrees": "red", "cannot tell": "yellow"}


def _table(title: str, head: Sequence[str], *, numbers: int) -> Table:
    """Return a table whose columns from one on are numbers."""
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(head):
        is_number = index >= numbers
        table.add_column(name, justify="right" if is_number else "left", no_wrap=is_number)
    return table
