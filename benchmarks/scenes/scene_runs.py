"""What the benchmarks of VLMo and FLAVA on the built-in scenes share.

A family's stages are trained once, below `--out`. A comparison then trains one of them from random
weights, twice a seed: both runs of a pair differ in one thing. A run that an earlier call finished
is scored as it is, and an interrupted one goes on from its last checkpoint; interrupted stages, of
which the time is a figure, start again.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from triptych.core.config import load_yaml
from triptych.core.errors import ConfigError
from triptych.core.files import write_json
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.scenes.layout import SceneFiles
from triptych.train.precision import resolve_precision
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.run import CONFIG_FILE, MODEL_FOLDER, resume_run, train_run
from triptych.workflows.scene_data import scene_source
from triptych.workflows.stagewise import (
    SCENES,
    STAGES,
    StagewisePlan,
    is_stagewise,
    last_stage,
    plan_stages,
    scene_plan,
    train_stagewise,
)

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for a two-sided 95 % interval of a mean, by the number of seeds."""

DATA = "data"
STAGEWISE = "stagewise"
CLOCK = "minutes.json"
"""In the folder of the stages, once all are trained: how long that took, in one go."""

SIDES = ("with", "without")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two ways to train a stage.

    Attributes:
        pair: Makes the run with an idea and the one without it of a stage's run from random weights
            and the folder that is given as `--out`.
        rerank_top_k: How many candidates ITM ranks before recall is measured.
    """

    pair: Callable[[RunConfig, Path], tuple[RunConfig, RunConfig]]
    rerank_top_k: int = 0


def scores(model: Path, files: SceneFiles, task: str, rerank_top_k: int = 0) -> dict[str, float]:
    """Score a model folder on the 500 unseen scenes."""
    source = scene_source(files, "vqa" if task == "vqa" else "caption", "test")
    found = evaluate_model(model, task, source, rerank_top_k=rerank_top_k)
    return {metric.name: metric.value for metric in found}


def recall(model: Path, files: SceneFiles, rerank_top_k: int = 0) -> float:
    """Return the mean of both directions' recall at 1."""
    found, end = scores(model, files, "retrieval", rerank_top_k), "_itm" if rerank_top_k else ""
    return (found[f"i2t_r1{end}"] + found[f"t2i_r1{end}"]) / 2


def t_interval(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of a mean."""
    return T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


def stages_protocol(plan: StagewisePlan) -> str:
    """Return how the last stage's model is trained and scored, in words."""
    return f"scale {plan.scale}, {SCENES[plan.scale]:,} scenes; 500 unseen scenes, dot product"


def is_finished(run_folder: Path) -> bool:
    """Return whether a run has left its model."""
    return (run_folder / MODEL_FOLDER / "config.json").is_file()


def stage_steps(plan: StagewisePlan) -> dict[str, int]:
    """Return the steps of each stage."""
    recipes = STAGES[plan.family]
    return {stage: build_recipe(r, plan.scale).train.max_steps for stage, r in recipes.items()}


def train_stages(plan: StagewisePlan, out: Path, console: Console) -> float:
    """Train all stages, unless an earlier call has, and return the minutes that it took.

    Raises:
        ConfigError: The folder holds stages of another scale, length or data, or some that were
            not timed.
    """
    folder = out / STAGEWISE
    clock = folder / CLOCK
    pairs = [source.path for source in plan.pairs]
    if clock.is_file():
        stored = json.loads(clock.read_text(encoding="utf-8"))
        if stored["scale"] != plan.scale:
            raise ConfigError(f"{folder} is of scale {stored['scale']}: choose another --out")
        if stored.get("steps") != stage_steps(plan):
            raise ConfigError(
                f"the stages in {folder} had other numbers of steps, {stored.get('steps')}: choose "
                "another --out"
            )
        if stored.get("pairs") != pairs:
            raise ConfigError(f"the stages in {folder} had other data: choose another --out")
        return float(stored["minutes"])
    if is_stagewise(folder):
        if is_finished(last_stage(folder)):
            raise ConfigError(f"nobody timed the stages in {folder}: choose another --out")
        shutil.rmtree(folder)
    start = time.perf_counter()
    train_stagewise(plan, folder, console=console)
    minutes = (time.perf_counter() - start) / 60
    done = {"scale": plan.scale, "steps": stage_steps(plan), "pairs": pairs, "minutes": minutes}
    write_json(clock, done)
    return minutes


def train_once(config: RunConfig, folder: Path, console: Console) -> Path:
    """Train, or go on, unless an earlier call has finished; return the model folder.

    Raises:
        ConfigError: The folder holds a run with other settings.
    """
    if not (folder / CONFIG_FILE).is_file():
        train_run(config, folder, console=console)
        return folder / MODEL_FOLDER
    stored = load_yaml(RunConfig, folder / CONFIG_FILE)
    train = replace(stored.train, num_threads=config.train.num_threads)
    # a run fills in its task's classes and the size of its images
    if replace(stored, task=config.task, image=config.image, train=train) != config:
        raise ConfigError(
            f"{folder} holds a run with other settings (steps, scale, precision or the recipe's): "
            "choose another --out, or the settings of that run"
        )
    if not is_finished(folder):
        resume_run(folder, console=console)
    return folder / MODEL_FOLDER


def fresh_run(plan: StagewisePlan, out: Path, steps: int, precision: Any = "auto") -> RunConfig:
    """Return the last stage from random weights, in one process and in fewer steps.

    Objectives start at the same share of the steps; a tenth of the steps at most warms up.
    """
    stage, recipe = list(STAGES[plan.family].items())[-1]
    run, base = plan_stages(plan, out / STAGEWISE)[stage], build_recipe(recipe, plan.scale)
    shrink = steps / base.train.max_steps
    warmup = min(run.optim.warmup_steps, max(1, steps // 10))
    return replace(
        run,
        model=base.model,
        weights=tuple(replace(w, start_step=int(w.start_step * shrink)) for w in run.weights),
        optim=replace(run.optim, warmup_steps=warmup),
        train=replace(
            base.train,
            max_steps=steps,
            seed=plan.seed,
            num_threads=plan.num_threads,
            precision=precision,
            progress="plain",
            log_every_steps=100,
        ),
    )


def in_two_processes(run: RunConfig) -> RunConfig:
    """Return the run in two processes of half the batch and half the threads each."""
    train = run.train
    threads = None if train.num_threads is None else max(1, train.num_threads // 2)
    halved = replace(
        train,
        num_processes=2,
        num_threads=threads,
    )
    return replace(run, train=halved)


def compare(
    name: str, comparison: Comparison, plan: StagewisePlan, options: argparse.Namespace
) -> dict[str, Any]:
    """Train both sides once a seed, and return the mean difference of their recall.

    Raises:
        ConfigError: The stages, whose tokenizers the runs take, are not there.
    """
    out, console = options.out, Console(stderr=True)
    stages = out / STAGEWISE
    if not is_stagewise(stages) or not is_finished(last_stage(stages)):
        raise ConfigError(f"{stages} holds no trained stages: run the part that trains them first")
    precision = one_precision(options.precision)
    rows = []
    for seed in range(options.seeds):
        run = fresh_run(replace(plan, seed=seed), out, options.steps, precision)
        values = []
        for side, config in zip(SIDES, comparison.pair(run, out), strict=True):
            model = train_once(config, out / name / f"seed_{seed}_{side}", console)
            values.append(recall(model, SceneFiles(out / DATA), comparison.rerank_top_k))
        rows.append((values[0], values[1]))
    after = f" after ITM of {comparison.rerank_top_k}" if comparison.rerank_top_k else ""
    protocol = (
        f"{options.steps} steps of the last stage in {precision}, {options.seeds} seeds, mean of "
        f"both recalls at 1 on 500 unseen scenes{after}; 95 % t interval of the mean difference"
    )
    return {**difference(name, rows), "protocol": protocol}


def difference(name: str, rows: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return the mean difference of the values with and without, a row a seed, and its interval."""
    differences = [first - second for first, second in rows]
    mean, half = statistics.mean(differences), t_interval(differences)
    return {
        name: round(mean, 4),
        "low": round(mean - half, 4),
        "high": round(mean + half, 4),
        "with": [first for first, _ in rows],
        "without": [second for _, second in rows],
    }


def one_precision(choice: Any) -> str:
    """Return the precision of all runs of a comparison."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return resolve_precision(choice, device)


def run_part(
    doc: str | None,
    family: str,
    train: tuple[str, Callable[[StagewisePlan, Path, Console], dict[str, Any]]],
    comparisons: Mapping[str, Comparison],
    arguments: Sequence[str] | None,
) -> None:
    """Run the part that the command line names, and print its JSON.

    Args:
        doc: The program's help.
        family: vlmo or flava.
        train: Name and function of the part that trains all stages.
        comparisons: The other parts.
        arguments: Of the command line; None takes the program's own.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=(train[0], *comparisons))
    parser.add_argument("--out", type=Path, default=Path(f"runs/{family}_bench"))
    parser.add_argument("--scale", default="tiny", help="tiny, or smoke to try the program")
    parser.add_argument("--seeds", type=int, default=3, choices=sorted(T_95))
    parser.add_argument("--steps", type=int, default=400, help="steps of each compared run")
    parser.add_argument("--num-threads", type=int, default=None, help="CPU threads; all cores")
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "bf16", "fp32"),
        help="of all compared runs; auto is measured once",
    )
    options = parser.parse_args(arguments)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    plan = scene_plan(
        options.out / DATA, options.scale, family=family, num_threads=options.num_threads
    )
    if options.part == train[0]:
        result = train[1](plan, options.out, Console(stderr=True))
    else:
        result = compare(options.part, comparisons[options.part], plan, options)
    print(json.dumps(result))
