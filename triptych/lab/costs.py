"""What a step of each variant costs, measured once, and the steps that a budget pays for."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from typing import Any

from triptych.core.config import to_dict
from triptych.core.console import Console
from triptych.core.errors import TriptychError
from triptych.core.files import write_json
from triptych.core.reading import read_json_object
from triptych.lab.definition import Variant
from triptych.lab.plan import Plan
from triptych.recipes.config import RunConfig
from triptych.workflows.step_costs import count_step_flops, time_steps

COSTS_FILE = "costs.json"
TRIAL_STEPS, MIXTURE_STEPS = 4, 24
"""Of each phase; a step of a mixture draws one of its sources, so that it takes more to see."""

TIMED_TRIAL_STEPS = 12


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step costs.

    Attributes:
        samples: Samples of a step.
        flops: Operations of a step, counted; None where that failed.
        seconds: Seconds of a step, measured; None where the budget does not need it.
    """

    samples: int
    flops: float | None
    seconds: float | None = None


def step_costs(plan: Plan, console: Console) -> dict[str, StepCost]:
    """Return what a step of each variant costs; what was measured before is kept.

    A variant whose trial fails has no operations; where the budget needs what is missing, it is
    absent: its run would fail likewise.
    """
    path = plan.folder / COSTS_FILE
    stored = read_json_object(path) if path.is_file() else {}
    unit = plan.study.budget.unit
    found = {}
    for variant in plan.study.variants:
        config = plan.whole_run(variant, 0)
        settings = _digest(config)
        entry: dict[str, Any] = stored.get(variant.name, {})
        if entry.get("settings") != settings:
            entry = {"settings": settings}
        try:
            if "flops" not in entry:
                console.print(f"counting the operations of {variant.name}", highlight=False)
                entry["flops"] = _in_trial(plan, variant, config, timed=False)
            if unit == "minutes" and "seconds" not in entry:
                console.print(f"timing steps of {variant.name}", highlight=False)
                entry["seconds"] = _in_trial(plan, variant, config, timed=True)
        except (TriptychError, RuntimeError) as error:
            console.print(f"{variant.name}: {error}", highlight=False, markup=False)
        stored[variant.name] = entry
        write_json(path, stored)
        found[variant.name] = StepCost(
            config.train.global_batch_size, entry.get("flops"), entry.get("seconds")
        )
    return found


def steps_of(plan: Plan, cost: StepCost) -> int | None:
    """Return the steps that the budget pays for; None where a step could not be measured."""
    budget = plan.study.budget
    each = {"samples": cost.samples, "flops": cost.flops, "minutes": cost.seconds}[budget.unit]
    amount = budget.amount * 60 if budget.unit == "minutes" else budget.amount
    return max(1, round(amount / each)) if each else None


def _digest(config: RunConfig) -> str:
    """Return a hash of the settings that decide what a step costs."""
    plain = to_dict(replace(config, train=replace(config.train, num_threads=None)))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _in_trial(plan: Plan, variant: Variant, config: RunConfig, *, timed: bool) -> float:
    """Measure in a folder that is removed afterwards."""
    folder = plan.folder / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    is_mixture = len({s.kind for s in config.data.train}) > 1
    try:
        if timed:
            steps = 2 * TIMED_TRIAL_STEPS if is_mixture else TIMED_TRIAL_STEPS
            return time_steps(config, folder, steps_of_phase=steps + 2, timed=steps)
        steps = MIXTURE_STEPS if is_mixture else TRIAL_STEPS
        return count_step_flops(config, folder, steps_of_phase=steps)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
