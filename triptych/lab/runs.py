"""Train and score what a study compares: each run once, several at a time, some of which may fail.

A finished run is kept, and an interrupted one goes on from its last checkpoint, bitwise. A run that
fails is noted in `failed.txt` of its folder; the others go on.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from triptych.core.config import load_yaml, save_yaml, to_dict
from triptych.core.console import Console
from triptych.core.errors import ConfigError, TriptychError
from triptych.core.files import write_atomic, write_json
from triptych.core.outputs import MetricValue
from triptych.core.processes import end_with_parent
from triptych.core.reading import read_json_object
from triptych.distributed.env import forward_signals
from triptych.lab.definition import PROBE, Score, Variant
from triptych.lab.plan import Part, Plan
from triptych.recipes.config import RunConfig
from triptych.train.interrupts import TrainingInterrupted
from triptych.train.trainer import CHECKPOINTS
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.frozen import probe_folder
from triptych.workflows.run import MODEL_FOLDER, finish_run, is_finished
from triptych.workflows.side_by_side import PrefixedLines

PLANNED_FILE = "planned.yaml"
"""In a run folder: what the study asked for; `config.yaml` also has what the run filled in."""

SCORES_FILE = "scores.json"
FAILED_FILE = "failed.txt"
CLOCK_FILE = "processor.json"
"""Processor seconds of a run that was trained in one go."""


@dataclass(frozen=True, slots=True)
class Job:
    """A variant with a seed, or the stages before the variants.

    Attributes:
        name: What lines of output begin with.
        folder: Receives `failed.txt`.
        variant: The variant; None for stages.
        seed: The seed; None for stages that all seeds share.
        steps: Optimizer steps of a variant; None where the budget's could not be measured.
    """

    name: str
    folder: Path
    variant: Variant | None
    seed: int | None
    steps: int | None = None


def stage_jobs(plan: Plan) -> list[list[Job]]:
    """Return the jobs of the stages that come before: those that seeds share, then the others."""
    stages = plan.study.stages
    folder = plan.folder / "stages"
    shared = [Job("stages", folder, None, None)] if any(not s.per_seed for s in stages) else []
    own: list[Job] = []
    if any(stage.per_seed for stage in stages):
        own = [
            Job(f"stages seed {n}", folder / f"seed_{n}", None, n)
            for n in range(plan.settings.seeds)
        ]
    return [jobs for jobs in (shared, own) if jobs]


def variant_jobs(plan: Plan, steps: Mapping[str, int | None]) -> list[Job]:
    """Return a job for each variant and seed, all variants of a seed together."""
    return [
        Job(f"{v.name} seed {seed}", plan.variant_folder(v.name, seed), v, seed, steps[v.name])
        for seed in range(plan.settings.seeds)
        for v in plan.study.variants
    ]


def run_jobs(plan: Plan, jobs: Sequence[Job], at_once: int, console: Console) -> dict[str, str]:
    """Do jobs, and return what failed: by the job's name, why.

    Args:
        plan: Of the study.
        jobs: In the order in which they begin.
        at_once: How many may run together; 1 does them in this process.
        console: Where to report.

    Raises:
        TrainingInterrupted: A signal came, and the run was saved.
        KeyboardInterrupt: It came between two runs, or while several were running.
    """
    if at_once == 1:
        for number, job in enumerate(jobs, start=1):
            console.print(f"[{number}/{len(jobs)}] {job.name}", highlight=False, markup=False)
            do_job(plan, job, console)
    else:
        _run_together(plan, jobs, at_once, console)
    failed = {}
    for job in jobs:
        note = job.folder / FAILED_FILE
        if note.is_file():
            failed[job.name] = note.read_text(encoding="utf-8").strip().splitlines()[0]
    return failed


def _run_together(plan: Plan, jobs: Sequence[Job], at_once: int, console: Console) -> None:
    context = multiprocessing.get_context("spawn")
    waiting, running = list(jobs), dict[int, tuple[Job, BaseProcess]]()
    children: list[BaseProcess] = []
    with forward_signals(children) as received:
        while (waiting and not received) or running:
            while waiting and len(running) < at_once and not received:
                job = waiting.pop(0)
                begun = context.Process(target=_job_process, args=(plan, job))
                begun.start()
                children.append(begun)
                running[begun.sentinel] = (job, begun)
            for sentinel in wait(list(running), timeout=1.0):
                assert isinstance(sentinel, int)
                job, process = running.pop(sentinel)
                process.join()
                if process.exitcode and not received:
                    _note_death(job, process.exitcode)
                if not received:
                    said = "failed" if (job.folder / FAILED_FILE).is_file() else "done"
                    left = len(waiting) + len(running)
                    line = f"{job.name}: {said}, {left} to go"
                    console.print(line, highlight=False, markup=False)
    if received:
        raise KeyboardInterrupt


def _note_death(job: Job, code: int) -> None:
    """Note a process that ended without saying why."""
    if not (job.folder / FAILED_FILE).is_file():
        why = f"its process died (code {code}): killed, or out of memory\n"
        write_atomic(job.folder / FAILED_FILE, why)


def _job_process(plan: Plan, job: Job) -> None:
    end_with_parent()
    lines = PrefixedLines(sys.stdout, f"{job.name} | ")
    console = Console(file=lines, width=160, force_terminal=False)  # type: ignore[arg-type]
    try:
        do_job(plan, job, console)
    except (TrainingInterrupted, KeyboardInterrupt) as stop:
        console.print(f"stopped {stop}", highlight=False, markup=False)


def do_job(plan: Plan, job: Job, console: Console) -> None:
    """Do what is left of a job; an error is noted in its folder.

    Raises:
        TrainingInterrupted: A signal came, and the run was saved.
    """
    note = job.folder / FAILED_FILE
    note.unlink(missing_ok=True)
    try:
        if job.variant is None:
            for stage in plan.study.stages:
                if stage.per_seed == (job.seed is not None):
                    _finish(plan.stage_run(stage, job.seed), console)
        else:
            assert job.seed is not None, "a variant has a seed"
            if job.steps is None:
                raise ConfigError("what a step costs could not be measured; why is said above")
            _finish_variant(plan, job.variant, job.seed, job.steps, console)
    except TrainingInterrupted:  # no failure: it was asked to stop, and has saved
        raise
    except Exception as error:
        said = str(error) if isinstance(error, TriptychError) else repr(error)
        write_atomic(note, f"{' '.join(said.split())}\n\n{traceback.format_exc()}")
        console.print(f"{job.name} failed: {said}", highlight=False, markup=False)


def _finish_variant(plan: Plan, variant: Variant, seed: int, steps: int, console: Console) -> None:
    main = plan.variant_run(variant, seed, steps)
    _finish(main, console)
    for stage in plan.study.after:
        _finish(plan.after_run(stage, variant, seed), console)
    score_models(plan, variant, seed, console)


def _finish(part: Part, console: Console) -> None:
    """Train, or go on, unless that is done; its checkpoints are then removed."""
    check_same(part)
    if not is_finished(part.folder):
        begun = (part.folder / PLANNED_FILE).is_file()
        save_yaml(part.config, part.folder / PLANNED_FILE)
        start = time.process_time()
        finish_run(part.config, part.folder, console=console)
        if not begun and part.config.train.num_processes == 1:
            write_json(part.folder / CLOCK_FILE, {"seconds": time.process_time() - start})
    shutil.rmtree(part.folder / CHECKPOINTS, ignore_errors=True)


def check_same(part: Part) -> None:
    """Raise where a run folder holds a run with other settings.

    Raises:
        ConfigError: It does; the message names the first field that differs, and what to do.
    """
    stored = stored_run(part.folder)
    if stored is None:
        return
    threads = replace(stored.train, num_threads=part.config.train.num_threads)
    differing = _first_difference(to_dict(replace(stored, train=threads)), to_dict(part.config), "")
    if differing is not None:
        name, before, now = differing
        raise ConfigError(
            f"{part.folder} holds a run with other settings: {name} is {now!r} now and was "
            f"{before!r}. Give --rerun with the variant's name to train it again, or choose "
            "another folder with --out"
        )


def stored_run(run_folder: Path) -> RunConfig | None:
    """Return what a run was asked to do; None where it has not begun."""
    planned = run_folder / PLANNED_FILE
    return load_yaml(RunConfig, planned) if planned.is_file() else None


def _first_difference(before: Any, now: Any, path: str) -> tuple[str, Any, Any] | None:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            inner = f"{path}.{key}" if path else str(key)
            found = _first_difference(before.get(key), now.get(key), inner)
            if found is not None:
                return found
        return None
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            place = old.get("name", index) if isinstance(old, dict) else index
            found = _first_difference(old, new, f"{path}.{place}")
            if found is not None:
                return found
        return None
    return None if before == now else (path, before, now)


# ------------------------------------------------------------------------------------- the scores


def score_models(plan: Plan, variant: Variant, seed: int, console: Console) -> None:
    """Score the models of a variant, each score once."""
    folder = plan.variant_folder(variant.name, seed)
    path = folder / SCORES_FILE
    stored = read_json_object(path) if path.is_file() else {}
    for score in plan.study.scores:
        key = json.dumps(to_dict(score), sort_keys=True)
        if stored.get(score.name, {}).get("definition") == key:
            continue
        model = folder / (score.of or "train") / MODEL_FOLDER
        found = measure(plan, score, model)
        value = sum(metric.value for metric in found) / len(found)
        stored[score.name] = {
            "definition": key,
            "value": value,
            "metrics": {m.name: [m.value, m.low, m.high] for m in found},
            "num_items": found[0].num_items,
            "protocol": found[0].protocol,
        }
        write_json(path, stored)
        console.print(f"{variant.name} seed {seed}: {score.name} {value:.4f}", highlight=False)


def measure(plan: Plan, score: Score, model: Path) -> list[MetricValue]:
    """Return the numbers whose mean a score is.

    Raises:
        ConfigError: `triptych eval` gives no number of that name.
    """
    if score.task == PROBE:
        parts = [plan.held_out(score, split) for split in ("train", "val")]
        found = probe_folder(
            model,
            parts[0],
            parts[1],
            plan.held_out(score),
            label_pattern=score.label_pattern,
            limit=score.limit,
        )[0]
    else:
        found = evaluate_model(
            model,
            score.task,
            plan.held_out(score),
            limit=score.limit,
            rerank_top_k=score.rerank_top_k,
        )
    names = score.metrics or (found[0].name,)
    known = {metric.name: metric for metric in found}
    missing = [name for name in names if name not in known]
    if missing:
        raise ConfigError(
            f"scores.{score.name}.metrics: {score.task} gives no {missing[0]!r} "
            f"(known: {', '.join(known)})"
        )
    return [known[name] for name in names]
