"""VLMo's three stages on the built-in scenes; prints JSON.

`stagewise` trains all three stages at scale tiny, the image tokenizer included, and fine-tunes for
questions; it gives `stagewise_minutes` (without the fine-tuning), `i2t_r1` and `t2i_r1` (500 unseen
scenes, dot product) and `vqa`. What each idea of the paper adds is in the studies `vlmo.*` of
`triptych compare`.

    python -m benchmarks.scenes.vlmo_scenes stagewise --out runs/vlmo_bench
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
    scores,
    stages_protocol,
    train_and_print,
    train_once,
    train_stages,
)
from triptych.recipes.registry import build_recipe
from triptych.scenes.layout import SceneFiles
from triptych.workflows.run import MODEL_FOLDER
from triptych.workflows.scene_data import scene_source
from triptych.workflows.stagewise import StagewisePlan, last_stage


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


def main(arguments: Sequence[str] | None = None) -> None:
    train_and_print(__doc__, "vlmo", "stagewise", stagewise, arguments)


if __name__ == "__main__":
    main()
