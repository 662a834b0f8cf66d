"""What the benchmarks on the built-in scenes share.

A family's stages are trained once, below `--out`; interrupted stages, of which the time is a
figure, start again. A run that an earlier call finished is scored as it is, and an interrupted one
goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
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
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.run import CONFIG_FILE, MODEL_FOLDER, resume_run, train_run
from triptych.workflows.scene_data import scene_source
from triptych.workflows.stagewise import (
    SCENES,
    STAGES,
    StagewisePlan,
    is_stagewise,
    last_stage,
    scene_plan,
    train_stagewise,
)

DATA = "data"
STAGEWISE = "stagewise"
CLOCK = "minutes.json"
"""In the folder of the stages, once all are trained: how long that took, in one go."""


def scores(model: Path, files: SceneFiles, task: str) -> dict[str, float]:
    """Score a model folder on the 500 unseen scenes."""
    source = scene_source(files, "vqa" if task == "vqa" else "caption", "test")
    found = evaluate_model(model, task, source, rerank_top_k=0)
    return {metric.name: metric.value for metric in found}


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


def train_and_print(
    doc: str | None,
    family: str,
    part: str,
    train: Callable[[StagewisePlan, Path, Console], dict[str, Any]],
    arguments: Sequence[str] | None,
) -> None:
    """Train a family's stages and print the JSON of what they reach.

    Args:
        doc: The program's help.
        family: vlmo or flava.
        part: What the command line calls it.
        train: Trains all stages and measures.
        arguments: Of the command line; None takes the program's own.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=(part,))
    parser.add_argument("--out", type=Path, default=Path(f"runs/{family}_bench"))
    parser.add_argument("--scale", default="tiny", help="tiny, or smoke to try the program")
    parser.add_argument("--num-threads", type=int, default=None, help="CPU threads; all cores")
    options = parser.parse_args(arguments)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    plan = scene_plan(
        options.out / DATA, options.scale, family=family, num_threads=options.num_threads
    )
    print(json.dumps(train(plan, options.out, Console(stderr=True))))
