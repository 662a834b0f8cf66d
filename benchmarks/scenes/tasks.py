"""Fine-tune a pre-trained model for one task of the papers on the built-in scenes; prints JSON.

The part names the task and the family, such as `nlvr2_vlmo`. `--start` names the pre-trained model;
if absent, it is that of `triptych demo --scale tiny --out runs/demo` for mPLUG, and for VLMo and
FLAVA that of `benchmarks.scenes.vlmo_scenes stagewise` and `benchmarks.scenes.flava_scenes joint`.
The recipe is the family's own at scale tiny. NLVR2 comes after SNLI-VE: a model that has not yet
learned to say what an image shows learns nothing from statements about two. The scores are
those of the 500 unseen scenes of `test`, and of `compositional`, whose shapes never had these
colours in training. `processor_minutes` is the processor time of training, summed over threads: on
two idle cores a run takes at most this long, and other work on the machine does not change it.

Runs that are finished are not trained again; `benchmarks/scenes/scene_runs.py` says how.

    python -m benchmarks.scenes.tasks nlvr2_mplug
    python -m benchmarks.scenes.tasks vqa
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.scenes.scene_runs import DATA, train_once
from triptych.core.files import write_json
from triptych.core.outputs import Predictions
from triptych.data.manifest import read_records
from triptych.demo.scoring import scene_objects
from triptych.evaluation.bootstrap import ratio_value
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.scenes.config import SceneConfig
from triptych.scenes.language import count_objects_named
from triptych.scenes.layout import SceneFiles
from triptych.tasks.registry import find_evaluation
from triptych.workflows.baselines import baselines_of
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.predictors import evaluation_records
from triptych.workflows.run import MODEL_FOLDER
from triptych.workflows.scene_data import format_source, write_once

FORMATS = ("captions", "vqa", "refs", "nlvr2", "snli_ve")
SPLITS = ("test", "compositional")
FAMILIES = ("mplug", "vlmo", "flava")
STARTS = {
    "mplug": Path("runs/demo/pretrain/model"),
    "vlmo": Path("runs/vlmo_bench/stagewise/pretrain/model"),
    "flava": Path("runs/flava_bench/stagewise/joint/model"),
}
"""Pre-trained models by family: of `triptych demo`, and of the scenes' stagewise benchmarks."""

CLOCK = "processor_minutes.json"
"""In a run's folder: the processor time of its training, if that was not interrupted."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One task of one family.

    Attributes:
        key: Of its figure.
        recipe: What fine-tunes it.
        data: The scenes' format that it reads.
        task: What `triptych eval` calls it.
        steps: Of the run, at scale tiny.
        after: The part whose model it starts from instead of the pre-trained one.
    """

    key: str
    recipe: str
    data: str
    task: str
    steps: int
    after: str | None = None


GOALS = {
    goal.key: goal
    for goal in (
        *(
            Goal(f"snli_ve_{family}", f"{family}.snli_ve", "snli_ve", "snli_ve", 1200)
            for family in FAMILIES
        ),
        *(
            Goal(
                f"nlvr2_{family}",
                f"{family}.nlvr2",
                "nlvr2",
                "nlvr2",
                1200,
                after=f"snli_ve_{family}",
            )
            for family in FAMILIES
        ),
        Goal("grounding", "mplug.grounding", "refs", "grounding", 800),
        Goal("caption_objects", "mplug.caption", "captions", "caption", 1000),
        Goal("vqa", "mplug.vqa", "vqa", "vqa", 4000),
    )
}


def tuned_run(goal: Goal, start: Path, files: SceneFiles, options: argparse.Namespace) -> RunConfig:
    """Return the recipe's run on the scenes, from a pre-trained model."""
    config = build_recipe(goal.recipe, options.scale)
    steps = options.steps or (goal.steps if options.scale == "tiny" else config.train.max_steps)
    return replace(
        config,
        model=replace(config.model, init_from=str(start)),
        data=replace(config.data, train=(format_source(files, goal.data, "train"),)),
        optim=replace(config.optim, warmup_steps=min(config.optim.warmup_steps, steps)),
        train=replace(
            config.train, max_steps=steps, num_threads=options.num_threads, progress="plain"
        ),
    )


def tuned_model(
    goal: Goal, files: SceneFiles, options: argparse.Namespace
) -> tuple[Path, float | None, list[str]]:
    """Train for a task, and before that for the one that it comes after.

    Returns:
        The model folder, the minutes of processor time, and what was trained, in words.
    """
    minutes: float | None = 0.0
    done: list[str] = []
    start = options.start or STARTS[goal.recipe.split(".")[0]]
    if goal.after is not None:
        start, minutes, done = tuned_model(GOALS[goal.after], files, options)
    config = tuned_run(goal, start, files, options)
    folder = options.out / goal.key
    own = processor_minutes(config, folder, Console(stderr=True))
    total = None if own is None or minutes is None else own + minutes
    said = f"{goal.recipe}, {config.train.max_steps} steps"
    return folder / MODEL_FOLDER, total, [*done, said]


def processor_minutes(config: RunConfig, folder: Path, console: Console) -> float | None:
    """Train unless an earlier call has; return the processor time, None if it was interrupted."""
    clock = folder / CLOCK
    was_begun = folder.exists()
    start = time.process_time()
    train_once(config, folder, console)
    if not was_begun:
        write_json(clock, {"minutes": (time.process_time() - start) / 60})
    if not clock.is_file():
        return None
    return float(json.loads(clock.read_text(encoding="utf-8"))["minutes"])


def score(goal: Goal, model: Path, files: SceneFiles, split: str) -> dict[str, Any]:
    """Return a split's score with its interval, and what guessing without looking gives."""
    source = format_source(files, goal.data, split)
    texts: dict[int, str] = {}

    def keep(predictions: Predictions) -> None:
        if predictions.texts is not None:
            texts.update(zip(predictions.index, predictions.texts, strict=True))

    first = evaluate_model(model, goal.task, source, keep=keep)[0]
    held_out = read_records(source).records
    if goal.task == "caption":
        shown = evaluation_records(held_out, find_evaluation("caption"), source.path)
        objects = scene_objects(shown, files, split)
        named = [count_objects_named(texts[i], found) for i, found in enumerate(objects)]
        value = ratio_value(goal.key, named, list(map(len, objects)), "")
        return {"value": value.value, "low": value.low, "high": value.high, "blind": None}
    train = read_records(format_source(files, goal.data, "train")).records
    guesses = baselines_of(goal.task, train, held_out, 0)
    blind = guesses[first.name].blind if first.name in guesses else None
    return {"value": first.value, "low": first.low, "high": first.high, "blind": blind}


def measure(goal: Goal, options: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune and score."""
    few = options.scale == "smoke"
    files = write_once(
        options.out / DATA,
        options.scale,
        48 if few else 24_000,
        num_val=8,
        num_test=12 if few else 500,
        config=SceneConfig(),
        formats=FORMATS,
    )
    model, minutes, done = tuned_model(goal, files, options)
    found = {split: score(goal, model, files, split) for split in SPLITS}
    test = found["test"]
    return {
        goal.key: round(test["value"], 4),
        f"{goal.key}_compositional": round(found["compositional"]["value"], 4),
        "low": test.get("low"),
        "high": test.get("high"),
        "blind": test["blind"],
        "processor_minutes": None if minutes is None else round(minutes, 1),
        "protocol": (
            f"from the pre-trained model {', then '.join(done)}, at scale {options.scale}; "
            "500 unseen scenes"
        ),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=sorted(GOALS))
    parser.add_argument("--start", type=Path, default=None, help="pre-trained model folder")
    parser.add_argument("--out", type=Path, default=Path("runs/tasks_bench"))
    parser.add_argument("--scale", default="tiny", help="tiny, or smoke to try the program")
    parser.add_argument(
        "--steps", type=int, default=None, help="of every run; those of the part if absent"
    )
    parser.add_argument("--num-threads", type=int, default=None, help="CPU threads; all cores")
    options = parser.parse_args(arguments)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    print(json.dumps(measure(GOALS[options.part], options)))


if __name__ == "__main__":
    main()
