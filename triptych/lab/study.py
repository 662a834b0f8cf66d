"""Run a study from its definition to its results."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triptych.core.config import save_yaml
from triptych.core.console import Console
from triptych.core.errors import ConfigError, nearest
from triptych.core.files import folder_for_one, has_entries, write_json
from triptych.lab.costs import step_costs, steps_of
from triptych.lab.definition import Study
from triptych.lab.own_data import with_held_out
from triptych.lab.page import PAGE_FILE, write_page
from triptych.lab.plan import MAIN, Plan, Settings, open_plan
from triptych.lab.results import RESULTS_FILE, gather_results
from triptych.lab.runs import (
    check_same,
    run_jobs,
    stage_jobs,
    stored_run,
    variant_jobs,
)

STUDY_FILE = "study.yaml"


def run_study(
    study: Study,
    settings: Settings,
    folder: Path,
    *,
    at_once: int = 1,
    rerun: Sequence[str] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Train and score every variant with every seed, and return what was found.

    Runs that are finished are kept, and interrupted ones go on. A study may grow: with more seeds,
    variants or scores, only what is missing is done.

    Args:
        study: What to compare.
        settings: How.
        folder: Receives data, runs and `results.json`; new, empty, or that of an earlier call.
        at_once: How many runs may be trained at the same time.
        rerun: Variants and stages whose runs are removed and done again.
        console: Where to report.

    Raises:
        ConfigError: The folder holds other files, or runs with other settings than the study's; or
            a name to run again is unknown.
        TriptychError: A stage that the variants start from failed.
    """
    console = console or Console()
    check_folder(folder)
    with folder_for_one(folder):
        plan = open_plan(study, with_held_out(settings, folder), folder)
        save_yaml(study, folder / STUDY_FILE)
        _forget(plan, rerun)
        _check_stored(plan)
        plan.write_worlds(console)
        plan.train_tokenizer()
        for jobs in stage_jobs(plan):
            failed = run_jobs(plan, jobs, min(at_once, len(jobs)), console)
            if failed:
                name, why = next(iter(failed.items()))
                raise ConfigError(f"{name}, from which variants start, failed: {why}")
        costs = step_costs(plan, console)
        steps = {name: steps_of(plan, cost) for name, cost in costs.items()}
        jobs = variant_jobs(plan, steps)
        for job in jobs:
            if job.variant is not None and job.seed is not None and job.steps is not None:
                check_same(plan.variant_run(job.variant, job.seed, job.steps))
        failed = run_jobs(plan, jobs, at_once, console)
        results = gather_results(plan, costs, steps, failed)
        write_json(folder / RESULTS_FILE, results)
        write_page(results, plan, folder / PAGE_FILE)
    return results


def check_folder(folder: Path) -> None:
    """Raise where a folder holds something other than a study.

    Raises:
        ConfigError: It does.
    """
    if has_entries(folder) and not (folder / STUDY_FILE).is_file():
        raise ConfigError(f"{folder} holds other files: choose another folder with --out")


def _forget(plan: Plan, names: Sequence[str]) -> None:
    """Remove the runs of variants and stages."""
    places = {v.name: plan.folder / "runs" / v.name for v in plan.study.variants}
    places |= {s.name: plan.folder / "stages" / s.name for s in plan.study.stages}
    for name in names:
        if name not in places:
            raise ConfigError(
                f"--rerun {name}: the study has no such variant or stage{nearest(name, places)} "
                f"(known: {', '.join(places)})"
            )
        shutil.rmtree(places[name], ignore_errors=True)


def _check_stored(plan: Plan) -> None:
    """Raise before anything is trained where a run that is there has other settings.

    The steps that a budget pays for are not known yet: those of the stored runs are taken.

    Raises:
        ConfigError: It has; the message names the field, and what to do. Or own data lacks what a
            run or a score reads.
    """
    for score in plan.study.scores:
        plan.held_out(score)
    for seed in range(plan.settings.seeds):
        for stage in plan.study.stages:
            check_same(plan.stage_run(stage, seed))
        for variant in plan.study.variants:
            stored = stored_run(plan.variant_folder(variant.name, seed) / MAIN)
            steps = 1 if stored is None else stored.train.max_steps
            check_same(plan.variant_run(variant, seed, steps))
            for stage in plan.study.after:
                check_same(plan.after_run(stage, variant, seed))
