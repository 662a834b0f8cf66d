"""VLMo on the built-in scenes: the three stages, and what each idea of the paper adds; prints JSON.

`stagewise` trains all three stages at scale tiny, the image tokenizer included, and fine-tunes for
questions; it gives `stagewise_minutes` (without the fine-tuning), `i2t_r1` and `t2i_r1` (500 unseen
scenes, dot product) and `vqa`.

The others train the third stage several times, each pair of runs from one seed, and give the mean
difference with its 95 % t interval over seeds:

`stagewise_gain`: from the second stage's model against fresh weights, the same budget of the third.
`multiway_gain`: an FFN a modality against one for all, both from fresh weights.
`global_negatives_gain`: ITM negatives of both processes against the own process's, two processes;
recall after ITM has ranked the first 16.

    python -m benchmarks.vlmo_scenes stagewise --out runs/vlmo_bench
    python -m benchmarks.vlmo_scenes stagewise_gain --out runs/vlmo_bench --seeds 3 --steps 800
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from triptych.models.registry import VARIANTS
from triptych.models.vlmo.config import VLMoConfig
from triptych.models.vlmo.variants import vlmo_tiny
from triptych.recipes.config import RunConfig
from triptych.recipes.demo import scene_source
from triptych.recipes.evaluate import evaluate_model
from triptych.recipes.registry import build_recipe
from triptych.recipes.run import train_run
from triptych.recipes.stagewise import StagewisePlan, plan_stages, scene_plan, train_stagewise
from triptych.scenes.layout import SceneFiles

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for a two-sided 95 % interval of a mean, by the number of seeds."""


@VARIANTS.register("vlmo_tiny_shared")
def vlmo_tiny_shared(*, image_size: int | None = None, vocab_size: int | None = None) -> VLMoConfig:
    """The tiny model with one FFN for all modalities."""
    return replace(vlmo_tiny(image_size=image_size, vocab_size=vocab_size), experts="shared")


def scores(model: Path, files: SceneFiles, task: str, rerank_top_k: int = 0) -> dict[str, float]:
    """Score a model folder on the 500 unseen scenes."""
    source = scene_source(files, "vqa" if task == "vqa" else "caption", "test")
    found = evaluate_model(model, task, source, rerank_top_k=rerank_top_k)
    return {metric.name: metric.value for metric in found}


def stagewise(plan: StagewisePlan, out: Path, console: Console) -> dict[str, Any]:
    """Train the stages and fine-tune for questions."""
    files = SceneFiles(out / "data")
    start = time.perf_counter()
    train_stagewise(plan, out / "stagewise", console=console)
    minutes = (time.perf_counter() - start) / 60
    model = out / "stagewise" / "pretrain" / "model"
    found = scores(model, files, "retrieval")
    config = build_recipe("vlmo.vqa", plan.scale)
    questions = replace(config.data, train=(scene_source(files, "vqa", "train"),))
    start_from = replace(config.model, init_from=str(model))
    train_run(replace(config, data=questions, model=start_from), out / "vqa", console=console)
    answers = scores(out / "vqa" / "model", files, "vqa")
    return {
        "stagewise_minutes": round(minutes, 1),
        "i2t_r1": found["i2t_r1"],
        "t2i_r1": found["t2i_r1"],
        "vqa": answers["vqa"],
        "protocol": "scale tiny, 24,000 scenes; 500 unseen scenes, dot product; closed answer list",
    }


def pair_run(plan: StagewisePlan, folder: Path, options: argparse.Namespace) -> RunConfig:
    """Return the third stage from fresh weights, in one process."""
    run = plan_stages(plan, folder)["pretrain"]
    base = build_recipe("vlmo.pretrain", plan.scale)
    shrink = options.steps / base.train.max_steps
    weights = tuple(replace(w, start_step=int(w.start_step * shrink)) for w in run.weights)
    tokenizer = replace(run.tokenizer, path=str(folder / "text_tokenizer"))
    return replace(
        run,
        model=base.model,
        tokenizer=tokenizer,
        weights=weights,
        train=replace(
            base.train,
            max_steps=options.steps,
            seed=plan.seed,
            num_threads=plan.num_threads,
            progress="plain",
            log_every_steps=100,
        ),
    )


def recall(model: Path, files: SceneFiles, rerank_top_k: int = 0) -> float:
    """Return the mean of both directions' recall at 1."""
    found, end = scores(model, files, "retrieval", rerank_top_k), "_itm" if rerank_top_k else ""
    return (found[f"i2t_r1{end}"] + found[f"t2i_r1{end}"]) / 2


def stagewise_pair(run: RunConfig, out: Path) -> tuple[RunConfig, RunConfig]:
    """From the second stage against from nothing."""
    init_from = str(out / "stagewise" / "language" / "model")
    return replace(run, model=replace(run.model, init_from=init_from)), run


def multiway_pair(run: RunConfig, out: Path) -> tuple[RunConfig, RunConfig]:
    """Experts against one FFN."""
    del out
    return run, replace(run, model=replace(run.model, name="vlmo_tiny_shared"))


def negatives_pair(run: RunConfig, out: Path) -> tuple[RunConfig, RunConfig]:
    """Negatives of both processes against the own process's."""
    del out
    train = replace(run.train, num_processes=2, local_batch_size=run.train.local_batch_size // 2)
    run = replace(run, train=train)
    return run, replace(run, task=replace(run.task, negatives="local"))  # type: ignore[call-arg]


PAIRS: dict[str, tuple[Callable[[RunConfig, Path], tuple[RunConfig, RunConfig]], int]] = {
    "stagewise_gain": (stagewise_pair, 0),
    "multiway_gain": (multiway_pair, 0),
    "global_negatives_gain": (negatives_pair, 16),
}
"""The two runs of a comparison, and how many candidates ITM ranks before recall is measured."""


def compare(name: str, plan: StagewisePlan, out: Path, options: argparse.Namespace) -> Any:
    """Train both sides once a seed."""
    console, files = Console(stderr=True), SceneFiles(out / "data")
    make, rerank_top_k = PAIRS[name]
    rows = []
    for seed in range(options.seeds):
        own = replace(plan, seed=seed)
        run = pair_run(own, out / "stagewise", options)
        values = []
        for side, config in zip(("with", "without"), make(run, out), strict=True):
            folder = out / name / f"seed_{seed}_{side}"
            train_run(config, folder, console=console)
            values.append(recall(folder / "model", files, rerank_top_k))
        rows.append(values)
    differences = [first - second for first, second in rows]
    half = t_interval(differences)
    mean = statistics.mean(differences)
    return {
        name: round(mean, 4),
        "low": round(mean - half, 4),
        "high": round(mean + half, 4),
        "with": [first for first, _ in rows],
        "without": [second for _, second in rows],
        "protocol": (
            f"{options.steps} steps of the third stage, {options.seeds} seeds, mean of both "
            f"recalls at 1 on 500 unseen scenes{' after ITM' if rerank_top_k else ''}; 95 % t "
            "interval of the mean difference"
        ),
    }


def t_interval(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of a mean."""
    return T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("stagewise", *PAIRS))
    parser.add_argument("--out", type=Path, default=Path("runs/vlmo_bench"))
    parser.add_argument("--scale", default="tiny", help="tiny, or smoke to try the program")
    parser.add_argument("--seeds", type=int, default=3, choices=sorted(T_95))
    parser.add_argument("--steps", type=int, default=800, help="steps of each compared run")
    parser.add_argument("--num-threads", type=int, default=None, help="CPU threads; all cores")
    options = parser.parse_args(arguments)
    plan = scene_plan(options.out / "data", options.scale, num_threads=options.num_threads)
    if options.part == "stagewise":
        result = stagewise(plan, options.out, Console(stderr=True))
    else:
        result = compare(options.part, plan, options.out, options)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
