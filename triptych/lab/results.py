"""What a study found: means over seeds, paired differences, costs and verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from triptych.core.config import to_dict
from triptych.core.machine import current_commit, describe_machine
from triptych.core.reading import read_json_object
from triptych.lab.costs import StepCost
from triptych.lab.definition import (
    COSTS,
    PROCESSOR_TIME,
    STEP_FLOPS,
    STEP_TIME,
    Comparison,
    Variant,
)
from triptych.lab.plan import MAIN, Plan
from triptych.lab.runs import CLOCK_FILE, FAILED_FILE, SCORES_FILE
from triptych.lab.statistics import judge, mean_interval
from triptych.train.metrics_log import METRICS_FILE, read_metrics
from triptych.workflows.run import is_finished

RESULTS_FILE = "results.json"


def gather_results(
    plan: Plan,
    costs: Mapping[str, StepCost],
    steps: Mapping[str, int | None],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """Return everything that a study found, as JSON values.

    Args:
        plan: The study, whose runs are done or have failed.
        costs: What a step of each variant costs.
        steps: Optimizer steps of each variant.
        failed: By a job's name, why it failed.
    """
    study = plan.study
    values = {
        variant.name: _values(plan, variant, costs[variant.name]) for variant in study.variants
    }
    return {
        "title": study.title,
        "question": study.question,
        "scale": study.scale,
        "budget": {"unit": study.budget.unit, "amount": study.budget.amount},
        "seeds": plan.settings.seeds,
        "variants": {
            variant.name: _row(plan, variant, values[variant.name], costs, steps)
            for variant in study.variants
        },
        "comparisons": [
            _compared(pair, values, is_main=number == 0)
            for number, pair in enumerate(study.comparisons)
        ],
        "failed": dict(failed),
        "notes": list(study.notes),
        "protocol": protocol(plan),
        "machine": describe_machine(),
        "commit": current_commit(),
        "definition": to_dict(study),
    }


def protocol(plan: Plan) -> str:
    """Return how all variants were treated alike, in words."""
    study, seeds = plan.study, plan.settings.seeds
    what = "one seed, which gives no interval" if seeds == 1 else f"{seeds} seeds"
    budget = {
        "samples": f"{study.budget.amount:,.0f} samples",
        "minutes": f"{study.budget.amount:g} minutes",
        "flops": f"{study.budget.amount:.3g} counted operations",
    }[study.budget.unit]
    return (
        f"Scale {study.scale}, {budget} of training for each variant, {what}; same data, order, "
        f"tokenizer and evaluation, {plan.precision}. Intervals are 95 % t intervals over seeds; "
        "differences are paired by seed."
    )


Values = dict[str, dict[int, float]]
"""By score or cost, its value for each seed that has one."""


def _values(plan: Plan, variant: Variant, cost: StepCost) -> Values:
    found: Values = {}
    for seed in range(plan.settings.seeds):
        folder = plan.variant_folder(variant.name, seed)
        if (folder / FAILED_FILE).is_file():
            continue
        path = folder / SCORES_FILE
        scores = read_json_object(path) if path.is_file() else {}
        for score in plan.study.scores:
            if score.name in scores:
                found.setdefault(score.name, {})[seed] = scores[score.name]["value"]
        seconds = seconds_per_step(folder / MAIN)
        if seconds is not None:
            found.setdefault(STEP_TIME, {})[seed] = seconds
        processor = _processor_seconds(folder / MAIN)
        if processor is not None:
            found.setdefault(PROCESSOR_TIME, {})[seed] = processor
        if cost.flops is not None and is_finished(folder / MAIN):
            found.setdefault(STEP_FLOPS, {})[seed] = cost.flops / cost.samples
    return found


def seconds_per_step(run_folder: Path) -> float | None:
    """Return the mean seconds of a step of a run, whatever interruptions it had; None without."""
    path = run_folder / METRICS_FILE
    if not path.is_file() or not is_finished(run_folder):
        return None
    total_s, steps = 0.0, 0
    lines: list[Mapping[str, float]] = [{"step": 0, "elapsed_s": 0.0}]
    lines += [line for line in read_metrics(path) if "elapsed_s" in line]
    for before, after in pairwise(lines):
        if after["elapsed_s"] > before["elapsed_s"]:  # else a run went on in a new process
            total_s += after["elapsed_s"] - before["elapsed_s"]
            steps += int(after["step"] - before["step"])
    return total_s / steps if steps else None


def _processor_seconds(run_folder: Path) -> float | None:
    path = run_folder / CLOCK_FILE
    if not path.is_file():
        return None
    lines = list(read_metrics(run_folder / METRICS_FILE))
    seconds = float(read_json_object(path)["seconds"])
    return seconds / int(lines[-1]["step"]) if lines else None


def _row(
    plan: Plan,
    variant: Variant,
    values: Values,
    costs: Mapping[str, StepCost],
    steps: Mapping[str, int | None],
) -> dict[str, Any]:
    cost, number = costs[variant.name], steps[variant.name]
    flops = None if cost.flops is None or number is None else cost.flops * number
    return {
        "about": variant.about,
        "scores": {score.name: _summary(values.get(score.name, {})) for score in plan.study.scores},
        "cost": {
            "steps": number,
            "samples": None if number is None else number * cost.samples,
            "flops": flops,
            **{name: _summary(values.get(name, {})) for name in COSTS},
        },
    }


def _summary(by_seed: Mapping[int, float]) -> dict[str, Any] | None:
    if not by_seed:
        return None
    return {"values": list(by_seed.values()), **asdict(mean_interval(list(by_seed.values())))}


def _compared(pair: Comparison, values: Mapping[str, Values], *, is_main: bool) -> dict[str, Any]:
    first = values[pair.first].get(pair.score, {})
    second = values[pair.second].get(pair.score, {})
    seeds = sorted(first.keys() & second.keys())
    differences = [first[seed] - second[seed] for seed in seeds]
    row: dict[str, Any] = {
        "first": pair.first,
        "second": pair.second,
        "score": pair.score,
        "main": is_main,
        "seeds": seeds,
        "differences": differences,
        "paper": None if pair.paper is None else to_dict(pair.paper),
    }
    if not differences:
        return row | {"mean": None, "low": None, "high": None, "tells": False, "verdict": None}
    found = mean_interval(differences)
    verdict = None
    if pair.paper is not None:
        verdict = judge(found, pair.paper.predicts, pair.paper.margin)
    return row | asdict(found) | {"tells": found.excludes_zero, "verdict": verdict}
