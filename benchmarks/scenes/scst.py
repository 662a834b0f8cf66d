"""Captioning of the built-in scenes by cross-entropy, then by CIDEr (SCST); prints JSON.

The model of a folder is fine-tuned with the recipe mplug.caption and scored on the test split,
then goes on with mplug.scst and is scored again in the same way. The scenes are those of the demo
with the same seed, so that a model of the demo has seen the first images and none of the test
split; each has two captions in different phrasings. `scst_cider_before` and `scst_cider_after` are
CIDEr as pycocoevalcap computes it, on its own scale of 0 to 10.

    triptych demo --scale tiny --out runs/demo
    python -m benchmarks.scenes.scst --model runs/demo/pretrain/model
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from triptych.core.outputs import MetricValue
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.scenes.config import SceneConfig
from triptych.scenes.layout import SceneFiles
from triptych.scenes.write import write_scenes
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.run import train_run
from triptych.workflows.scene_data import scene_source

SCALE = "tiny"


def main(argv: Sequence[str] | None = None) -> None:
    """Run all and print one line of JSON."""
    options = _parse(argv)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(run(options, options.out or Path(temporary))))


def run(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Fine-tune twice and score each time.

    Args:
        options: What the command line said.
        out: Receives `scenes/`, `caption/` and `scst/`.

    Returns:
        Figures, intervals, seconds and settings.
    """
    files = _write_scenes(out / "scenes", options)
    start, seconds, scores = options.model, {}, {}
    for stage, steps in (("caption", options.caption_steps), ("scst", options.scst_steps)):
        began = time.perf_counter()
        train_run(_config(stage, start, files, steps, options), out / stage)
        seconds[stage] = round(time.perf_counter() - began, 1)
        start = out / stage / "model"
        began = time.perf_counter()
        scores[stage] = _cider(start, files)
        seconds[f"{stage}_scored"] = round(time.perf_counter() - began, 1)
    before, after = scores["caption"], scores["scst"]
    return {
        "scst_cider_before": round(before.value, 4),
        "scst_cider_after": round(after.value, 4),
        "intervals": {
            "scst_cider_before": [round(before.low, 4), round(before.high, 4)],
            "scst_cider_after": [round(after.low, 4), round(after.high, 4)],
        },
        "num_items": after.num_items,
        "protocol": after.protocol,
        "rewards": _rewards(out / "scst"),
        "seconds": seconds,
        "caption_steps": options.caption_steps,
        "scst_steps": options.scst_steps,
        "local_batch_size": options.local_batch_size,
        "num_images": options.num_images,
        "seed": options.seed,
        "num_threads": torch.get_num_threads(),
    }


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="a model folder with a pre-trained mPLUG")
    add("--out", type=Path, help="keeps scenes, runs and models; deleted afterwards if absent")
    add("--num-images", type=int, default=8000, help="training images")
    add("--num-test", type=int, default=500, help="test images")
    add("--caption-steps", type=int, default=500, help="steps of cross-entropy")
    add("--scst-steps", type=int, default=150, help="steps of SCST")
    add("--local-batch-size", type=int, default=64, help="images of a step")
    add("--seed", type=int, default=0, help="of the scenes and of both runs")
    add("--num-threads", type=int, help="CPU threads; torch's own choice if absent")
    return parser.parse_args(argv)


def _write_scenes(folder: Path, options: argparse.Namespace) -> SceneFiles:
    return write_scenes(
        folder,
        options.num_images,
        num_val=8,
        num_test=options.num_test,
        num_compositional=8,
        config=SceneConfig(seed=options.seed),
        formats=("captions",),
        captions_per_image=2,
        num_workers=2 if options.num_images > 1000 else 1,
    )


def _config(
    stage: str, model: Path, files: SceneFiles, steps: int, options: argparse.Namespace
) -> RunConfig:
    """Return the recipe of a stage at scale "tiny", from a model folder."""
    config = build_recipe(f"mplug.{stage}", SCALE)
    source = scene_source(files, "caption", "train")
    return replace(
        config,
        model=replace(config.model, init_from=str(model)),
        data=replace(config.data, train=(source,), seed=options.seed),
        train=replace(
            config.train,
            max_steps=steps,
            global_batch_size=options.local_batch_size,
            log_every_steps=min(10, steps),
            num_threads=options.num_threads,
            seed=options.seed,
            progress="off",
            tensorboard=False,
        ),
        optim=replace(config.optim, warmup_steps=min(config.optim.warmup_steps, steps)),
    )


def _cider(folder: Path, files: SceneFiles) -> MetricValue:
    values = evaluate_model(folder, "caption", scene_source(files, "caption", "test"))
    return next(value for value in values if value.name == "cider")


def _rewards(run_folder: Path) -> dict[str, float]:
    """Return the samples' mean reward at the beginning and at the end of the run."""
    lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rewards = [json.loads(line)["loss/reward"] for line in lines]
    return {"first": round(rewards[0], 3), "last": round(rewards[-1], 3)}


if __name__ == "__main__":
    main()
