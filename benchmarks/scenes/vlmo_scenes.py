"""VLMo on the built-in scenes: the three stages, and what each idea of the paper adds; prints JSON.

`stagewise` trains all three stages at scale tiny, the image tokenizer included, and fine-tunes for
questions; it gives `stagewise_minutes` (without the fine-tuning), `i2t_r1` and `t2i_r1` (500 unseen
scenes, dot product) and `vqa`.

The others, which come after it, train the third stage several times, each pair of runs with one
seed, and give the mean difference with its 95 % t interval over seeds:

`stagewise_gain`: from the second stage's model against random weights, the third's budget equal.
`multiway_gain`: an FFN a modality against one for all, both from random weights.
`global_negatives_gain`: ITM negatives of both processes against the own process's, two processes;
recall after ITM has ranked the first 16. Both go on from the third stage's model, without MLM, and
ITM takes every step.

Runs that are finished are not trained again; `benchmarks/scenes/scene_runs.py` says how.

    python -m benchmarks.scenes.vlmo_scenes stagewise --out runs/vlmo_bench
    python -m benchmarks.scenes.vlmo_scenes stagewise_gain --seeds 3 --steps 400
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.scenes.scene_runs import (
    DATA,
    STAGEWISE,
    Comparison,
    in_two_processes,
    run_part,
    scores,
    stages_protocol,
    train_once,
    train_stages,
)
from triptych.models.families import VARIANTS
from triptych.models.vlmo.config import VLMoConfig
from triptych.models.vlmo.family import vlmo_tiny
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.scenes.layout import SceneFiles
from triptych.train.config import ObjectiveWeight
from triptych.workflows.run import MODEL_FOLDER
from triptych.workflows.scene_data import scene_source
from triptych.workflows.stagewise import StagewisePlan, last_stage


@VARIANTS.register("vlmo_tiny_shared")
def vlmo_tiny_shared(*, image_size: int | None = None, vocab_size: int | None = None) -> VLMoConfig:
    """The tiny model with one FFN for all modalities."""
    return replace(vlmo_tiny(image_size=image_size, vocab_size=vocab_size), experts="shared")


def stagewise(plan: StagewisePlan, out: Path, console: Console) -> dict[str, Any]:
    """Train the stages and fine-tune for questions."""
    files = SceneFiles(out / DATA)
    minutes = train_stages(plan, out, console)
    model = last_stage(out / STAGEWISE) / MODEL_FOLDER
    found = scores(model, files, "retrieval")
    config = build_recipe("vlmo.vqa", plan.scale)
    questions = replace(config.data, train=(scene_source(files, "vqa", "train"),))
    start_from = replace(config.model, init_from=str(model))
    tuned = train_once(replace(config, data=questions, model=start_from), out / "vqa", console)
    return {
        "stagewise_minutes": round(minutes, 1),
        "i2t_r1": found["i2t_r1"],
        "t2i_r1": found["t2i_r1"],
        "vqa": scores(tuned, files, "vqa")["vqa"],
        "protocol": f"{stages_protocol(plan)}; closed answer list",
    }


def stagewise_pair(run: RunConfig, out: Path) -> tuple[RunConfig, RunConfig]:
    """From the second stage against from scratch."""
    init_from = str(out / STAGEWISE / "language" / MODEL_FOLDER)
    return replace(run, model=replace(run.model, init_from=init_from)), run


def multiway_pair(run: RunConfig, out: Path) -> tuple[RunConfig, RunConfig]:
    """Experts against one FFN."""
    del out
    return run, replace(run, model=replace(run.model, name="vlmo_tiny_shared"))


def negatives_pair(run: RunConfig, out: Path) -> tuple[RunConfig, RunConfig]:
    """Negatives of both processes against the own process's.

    Both sides go on from the third stage's model, with ITC and ITM in every step: ITM learns only
    once ITC tells pairs apart, which random weights do too late for a comparison's few steps.
    """
    init_from = str(out / STAGEWISE / "pretrain" / MODEL_FOLDER)
    weights = (
        ObjectiveWeight(name="itc"),
        ObjectiveWeight(name="itm"),
        ObjectiveWeight(name="mlm", weight=0.0),
    )
    run = replace(run, model=replace(run.model, init_from=init_from), weights=weights)
    run = in_two_processes(run)
    task: Any = run.task
    return run, replace(run, task=replace(task, negatives="local"))


COMPARISONS = {
    "stagewise_gain": Comparison(stagewise_pair),
    "multiway_gain": Comparison(multiway_pair),
    "global_negatives_gain": Comparison(negatives_pair, rerank_top_k=16),
}


def main(arguments: Sequence[str] | None = None) -> None:
    run_part(__doc__, "vlmo", ("stagewise", stagewise), COMPARISONS, arguments)


if __name__ == "__main__":
    main()
