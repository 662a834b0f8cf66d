"""Figures 3 and 4 of the mPLUG paper on the built-in scenes: accuracy beside time; prints JSON.

A small mPLUG with six fusion layers, as in the paper, is pre-trained from random weights once for
each stride of the skip-connected network (figure 3) and once for each other fusion network (figure
4): same data, seed, batches and steps. Each is then scored on 200 unseen scenes by what its fusion
network decides: retrieval of which ITM ranks the first 16, and the objects that captions name.
Strides are in the released layout: layer j is connected if j != 0 and j is a multiple of S, so that
S = 6 has no connected layer, and is the asymmetric co-attention network of figure 4.

`processor_ms_per_step` is processor time, summed over threads, of whole training steps: it can be
compared only between runs on an equally busy machine. `base_width_ms` is a forward and backward
pass of the fusion network alone at the paper's width, as `benchmarks/results/mplug_fusion.json`
stores it. One seed and few steps: differences within the intervals mean nothing. The paper's
accuracies, of VQA and NLVR2 after 30 epochs of 14 M images, are another matter.

Runs that are finished are not trained again; `benchmarks/scenes/scene_runs.py` says how.

    python -m benchmarks.scenes.mplug_figures --num-threads 1
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.pages.gather import RESULTS
from benchmarks.scenes.scene_runs import DATA, one_precision, train_once
from triptych.core.files import write_json
from triptych.core.outputs import MetricValue, Predictions
from triptych.data.manifest import read_records
from triptych.demo.scoring import scene_objects
from triptych.evaluation.bootstrap import ratio_value
from triptych.models.families import VARIANTS
from triptych.models.mplug.config import FusionName, MPLUGConfig, strided_layers
from triptych.models.mplug.family import mplug_tiny
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.scenes.config import SceneConfig
from triptych.scenes.language import count_objects_named
from triptych.scenes.layout import SceneFiles
from triptych.tasks.registry import find_evaluation
from triptych.workflows.evaluate import evaluate_model, evaluation_records
from triptych.workflows.scene_data import scene_source, write_once

FUSION_DEPTH = 6
VARIANT = "mplug_tiny_fusion6"
STRIDES = (1, 2, 3, 6)
RIVALS: tuple[FusionName, ...] = ("connected_attention", "co_attention")
NETWORKS = (*(f"skip_connected S={stride}" for stride in STRIDES), *RIVALS)
SAME = "skip_connected S=6"
"""What the asymmetric co-attention network of figure 4 is."""

RERANKED = 16
CLOCK = "processor_s.json"
"""In a run's folder: the processor time of its training, if that was not interrupted."""


@VARIANTS.register(VARIANT)
def mplug_tiny_fusion6(
    *, image_size: int | None = None, vocab_size: int | None = None
) -> MPLUGConfig:
    """Return mplug_tiny with the paper's six fusion layers."""
    tiny = mplug_tiny(image_size=image_size, vocab_size=vocab_size)
    return replace(tiny, fusion_depth=FUSION_DEPTH, connected_layers=strided_layers(6, 3))


def build_runs(files: SceneFiles, options: argparse.Namespace) -> dict[str, RunConfig]:
    """Return the pre-training run of every network by name; they differ in the network alone."""
    recipe = build_recipe("mplug.pretrain", options.scale)
    steps = options.steps
    starts = {"mlm": 3 * steps // 10, "itm": 4 * steps // 10}
    run = replace(
        recipe,
        data=replace(recipe.data, train=(scene_source(files, "caption", "train"),)),
        optim=replace(recipe.optim, warmup_steps=min(recipe.optim.warmup_steps, steps // 10)),
        train=replace(
            recipe.train,
            max_steps=steps,
            global_batch_size=min(options.batch_size, recipe.train.global_batch_size),
            num_threads=options.num_threads,
            precision=one_precision("auto"),
            progress="plain",
            log_every_steps=100,
        ),
        weights=tuple(replace(w, start_step=starts.get(w.name, 0)) for w in recipe.weights),
    )
    model = replace(run.model, name=VARIANT)
    strided = {
        f"skip_connected S={stride}": replace(
            model, connected_layers=strided_layers(FUSION_DEPTH, stride)
        )
        for stride in STRIDES
    }
    rivals = {name: replace(model, fusion=name) for name in RIVALS}
    return {name: replace(run, model=source) for name, source in (strided | rivals).items()}


def processor_s(config: RunConfig, folder: Path, console: Console) -> float | None:
    """Train unless an earlier call has; return the processor time, None if it was interrupted."""
    clock, was_begun = folder / CLOCK, folder.exists()
    start = time.process_time()
    train_once(config, folder, console)
    if not was_begun:
        write_json(clock, {"seconds": time.process_time() - start})
    if not clock.is_file():
        return None
    return float(json.loads(clock.read_text(encoding="utf-8"))["seconds"])


def caption_objects(model: Path, files: SceneFiles, limit: int) -> MetricValue:
    """Return the share of the objects of unseen scenes that the model's captions name."""
    source = scene_source(files, "caption", "test")
    texts: dict[int, str] = {}

    def keep(predictions: Predictions) -> None:
        texts.update(zip(predictions.index, predictions.texts or (), strict=True))

    evaluate_model(model, "caption", source, limit=limit, keep=keep)
    found = read_records(source).records
    shown = evaluation_records(found, find_evaluation("caption"), source.path)[:limit]
    objects = scene_objects(shown, files, "test")
    named = [count_objects_named(texts[i], seen) for i, seen in enumerate(objects)]
    return ratio_value("caption_objects", named, list(map(len, objects)), "")


def score(model: Path, files: SceneFiles, limit: int) -> dict[str, Any]:
    """Return the scores of what the fusion network decides, with their intervals."""
    source = scene_source(files, "caption", "test")
    found = evaluate_model(model, "retrieval", source, limit=limit, rerank_top_k=RERANKED)
    kept = [m for m in found if m.name in ("i2t_r1", "t2i_r1", "i2t_r1_itm", "t2i_r1_itm")]
    return {
        metric.name: [round(x, 4) for x in (metric.value, metric.low, metric.high)]
        for metric in (*kept, caption_objects(model, files, limit))
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train and score every network."""
    console = Console(stderr=True)
    few = options.scale == "smoke"
    files = write_once(
        options.out / DATA,
        options.scale,
        48 if few else 24_000,
        num_val=8,
        num_test=12 if few else 500,
        config=SceneConfig(),
        formats=("captions",),
    )
    stored = RESULTS / "mplug_fusion.json"
    base_ms = json.loads(stored.read_text(encoding="utf-8"))["output"][
        "forward_backward_ms_per_sample"
    ]
    runs = build_runs(files, options)
    rows = {}
    for name in options.networks:
        config = runs[name]
        folder = options.out / name.replace(" ", "_").replace("=", "")
        seconds = processor_s(config, folder, console)
        per_step = None if seconds is None else round(1000 * seconds / options.steps)
        rows[name] = {
            **score(folder / "model", files, options.limit),
            "processor_ms_per_step": per_step,
            "base_width_ms": base_ms[name],
        }
        console.print(name, rows[name], soft_wrap=True)
    precision = next(iter(runs.values())).train.precision
    asymmetric = {"asymmetric_co_attention": rows[SAME]} if SAME in rows else {}
    return {
        "figures_networks": len(rows),
        "figure3": {name: rows[name] for name in NETWORKS[:4] if name in rows},
        "figure4": {n: rows[n] for n in ("skip_connected S=3", *RIVALS) if n in rows} | asymmetric,
        "scores": "[value, lower end, upper end of the 95 % interval]",
        "protocol": (
            f"mplug_tiny with {FUSION_DEPTH} fusion layers from random weights, {options.steps} "
            f"steps of {options.batch_size} pairs in {precision}, one seed; {options.limit} unseen "
            f"scenes, ITM ranks the first {RERANKED}; base_width_ms: one pair at the paper's width"
        ),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/mplug_figures"))
    parser.add_argument("--scale", default="tiny", help="tiny, or smoke to try the program")
    parser.add_argument("--steps", type=int, default=300, help="pre-training steps a network")
    parser.add_argument("--batch-size", type=int, default=32, help="pairs a step")
    parser.add_argument("--limit", type=int, default=200, help="unseen scenes to score on")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--num-threads", type=int, default=None, help="CPU threads; all cores")
    options = parser.parse_args(arguments)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    print(json.dumps(measure(options)))


if __name__ == "__main__":
    main()
