"""Seeded faults that the run doctor must name, and healthy recipes on which it must keep silent.

Ten short runs of mPLUG with one fault each, three faults in VLMo and in FLAVA too, and six healthy
runs: the pre-training of mPLUG, VLMo and FLAVA, and a fine-tuning of each of their models; all of
it with every seed, at the scale tiny with fewer steps and smaller batches, on built-in scenes.
Prints JSON, with the titles of all findings of each run. What is done stays in `--out`.

    python -m benchmarks.lab.doctor_faults --out /tmp/faults [--seeds 0 1] [--only equal_captions]
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image
from torch import Tensor

from triptych.core.console import Console
from triptych.data.manifest import read_records
from triptych.data.source import DataSourceConfig
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.scenes.layout import SceneFiles
from triptych.scenes.write import write_scenes
from triptych.tasks.pretraining.mplug import HardNegatives, MPLUGPretraining
from triptych.train.doctor import LiveDoctor, diagnose
from triptych.train.trainer import Trainer
from triptych.train.vitals import Vitals
from triptych.workflows import prepared
from triptych.workflows import run as runs
from triptych.workflows.diagnosis import read_history
from triptych.workflows.scene_data import scene_source

IMAGES, STEPS, BATCH, WARMUP = 1500, 260, 16, 20


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault: what must be found, and how it comes about.

    Attributes:
        names: Findings of which one names it.
        change: Changes the configuration.
        data: Changes the list of (image, caption) pairs.
        patch: What is wrong while the run goes on.
        steps: Of the run: as many as show the fault.
        recipe: Of the run.
    """

    names: tuple[str, ...]
    change: Callable[[RunConfig], RunConfig] = lambda config: config
    data: Callable[[list[dict[str, str]], Path], list[dict[str, str]]] | None = None
    patch: Callable[[], AbstractContextManager[Any]] = nullcontext
    steps: int = 80
    recipe: str = "mplug.pretrain"


def shuffled(pairs: list[dict[str, str]], folder: Path) -> list[dict[str, str]]:
    captions = [pair["caption"] for pair in pairs]
    random.Random(5).shuffle(captions)
    return [{**p, "caption": c} for p, c in zip(pairs, captions, strict=True)]


def grey(pairs: list[dict[str, str]], folder: Path) -> list[dict[str, str]]:
    folder.mkdir(exist_ok=True)
    for number in range(len(pairs)):
        Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(folder / f"{number}.png")
    return [{**p, "image": str(folder / f"{n}.png")} for n, p in enumerate(pairs)]


def hundredfold(config: RunConfig) -> RunConfig:
    optim = config.optim
    return replace(
        config,
        optim=replace(
            optim,
            learning_rate=100 * optim.learning_rate,
            vision_learning_rate=100 * optim.vision_learning_rate,
            muon_learning_rate=100 * (optim.muon_learning_rate or 0.0),
        ),
    )


def with_queue(config: RunConfig) -> RunConfig:
    return replace(config, task=replace(config.task, queue_size=256, momentum=0.99, alpha=0.4))


def changed(change: Callable[[Any], Any]) -> Callable[[], AbstractContextManager[Any]]:
    """Return a patch that changes every task that is built."""
    build = runs.build_task

    def build_changed(*arguments: Any) -> Any:
        task = build(*arguments)
        change(task)
        return task

    return lambda: mock.patch.object(runs, "build_task", build_changed)


def frozen(part: Callable[[Any], Any]) -> Callable[[], AbstractContextManager[Any]]:
    return changed(lambda task: part(task).requires_grad_(False))


def collapse(task: Any) -> None:
    """Give all images of a batch the same embedding, that of their mean."""
    for name in ("image_projection", "fused_image_projection"):
        projection = getattr(task.model, name, None)
        if projection is not None:
            projection.register_forward_hook(
                lambda module, given, made: made.mean(dim=0, keepdim=True).expand_as(made)
            )


def swapped_labels() -> AbstractContextManager[Any]:
    draw = MPLUGPretraining.hard_negatives

    def draw_swapped(self: Any, *arguments: Any) -> HardNegatives:
        found = draw(self, *arguments)
        labels = found.labels
        return replace(found, labels=labels.where(labels < 0, 1 - labels))

    return mock.patch.object(MPLUGPretraining, "hard_negatives", draw_swapped)


class Slow:
    """A loader that takes as long again for a batch as everything since the last one."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        given = time.perf_counter()
        for batch in self._loader:
            time.sleep(time.perf_counter() - given)
            given = time.perf_counter()
            yield batch


def starved() -> AbstractContextManager[Any]:
    load = prepared.training_loader
    return mock.patch.object(prepared, "training_loader", lambda *rest: Slow(load(*rest)))


def exploding() -> AbstractContextManager[Any]:
    compute = MPLUGPretraining.losses

    def growing(self: Any, batch: Any, **rest: Any) -> dict[str, Tensor]:
        losses = compute(self, batch, **rest)
        losses["itc"] = losses["itc"] * 1.1 ** max(0, self._step - 80)
        return losses

    return mock.patch.object(MPLUGPretraining, "losses", growing)


def unclipped(config: RunConfig) -> RunConfig:
    return replace(config, train=replace(config.train, max_grad_norm=None))


FAULTS = {
    "shuffled_captions": Fault(names=("unrelated_pairs",), data=shuffled, steps=STEPS),
    "learning_rate_x100": Fault(names=("learning_rate_high",), change=hundredfold),
    "frozen_image_encoder": Fault(
        names=("frozen_image_encoder",), patch=frozen(lambda task: task.model.visual_encoder)
    ),
    "equal_captions": Fault(
        names=("equal_texts",),
        data=lambda pairs, _: [{**p, "caption": "a small red star"} for p in pairs],
    ),
    "temperature_stuck": Fault(
        names=("temperature_stuck", "temperature_at_clamp"),
        patch=frozen(lambda task: task.temperature),
    ),
    "swapped_itm_labels": Fault(names=("swapped_labels",), patch=swapped_labels, steps=130),
    "constant_image": Fault(names=("constant_images",), data=grey),
    "starved_loader": Fault(names=("data_starved",), patch=starved),
    "exploding_gradient": Fault(
        names=("exploding_gradient",), change=unclipped, patch=exploding, steps=170
    ),
    "queue_never_pushed": Fault(
        names=("stale_queue",),
        change=with_queue,
        patch=lambda: mock.patch(
            "triptych.objectives.feature_queue.FeatureQueue.push", lambda *_: None
        ),
    ),
}

ELSEWHERE = {
    f"{recipe}, {name}": replace(fault, recipe=recipe)
    for recipe in ("vlmo.pretrain", "flava.joint")
    for name, fault in {
        "shuffled_captions": FAULTS["shuffled_captions"],
        "learning_rate_x100": FAULTS["learning_rate_x100"],
        "collapsed_embeddings": Fault(names=("collapsed_embeddings",), patch=changed(collapse)),
    }.items()
}
"""Faults of the other families."""

HEALTHY = {
    "mplug.pretrain": None,
    "vlmo.pretrain": None,
    "flava.joint": None,
    "mplug.vqa": "mplug.pretrain",
    "vlmo.retrieval": "vlmo.pretrain",
    "flava.retrieval": "flava.joint",
}
"""Recipes, and the healthy run whose model each starts from."""


def short(config: RunConfig, source: DataSourceConfig, seed: int, steps: int) -> RunConfig:
    """Return a recipe's run with few steps, its schedule of objectives in proportion."""
    ratio = steps / config.train.max_steps
    return replace(
        config,
        data=replace(config.data, train=(source,), seed=seed),
        train=replace(
            config.train,
            max_steps=steps,
            global_batch_size=BATCH,
            num_threads=1,
            seed=seed,
            tensorboard=False,
            progress="plain",
            checkpoint_every_steps=10**6,
        ),
        optim=replace(config.optim, warmup_steps=min(config.optim.warmup_steps, WARMUP)),
        weights=tuple(
            replace(weight, start_step=round(ratio * weight.start_step))
            for weight in config.weights
        ),
    )


def write_pairs(fault: Fault, files: SceneFiles, folder: Path) -> DataSourceConfig:
    """Return the scenes' captions as this fault has them."""
    source = scene_source(files, "caption", "train")
    if fault.data is None:
        return source
    pairs = json.loads((files.root / "plain.json").read_text())
    path = folder.with_suffix(".jsonl")
    lines = fault.data(pairs, folder.with_suffix(".images"))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return DataSourceConfig(path=str(path))


@contextmanager
def quiet(path: Path) -> Iterator[Console]:
    with path.open("w") as file:
        yield Console(file=file)


WATCHERS = (
    (Vitals, ("see", "of_batch", "before_update", "numbers")),
    (LiveDoctor, ("add",)),
)
"""Whatever a step does for the doctor alone."""


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Count the processor time of whole steps, and what of it the doctor needs."""
    spent = {"steps": 0.0, "watching": 0.0}

    def counted(method: Callable[..., Any], what: str) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            began = time.thread_time()
            try:
                return method(*arguments, **named)
            finally:
                spent[what] += time.thread_time() - began

        return run

    with ExitStack() as stack:
        places = [(owner, name, "watching") for owner, names in WATCHERS for name in names]
        steps = [(Trainer, name, "steps") for name in ("_train_step", "_log_step")]
        for owner, name, what in (*places, *steps):
            method = counted(getattr(owner, name), what)
            stack.enter_context(mock.patch.object(owner, name, method))
        yield spent


def train(
    config: RunConfig, out: Path, patch: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> dict[str, Any]:
    """Train unless it is done; return what the doctor finds, and what it told live."""
    log = out.with_name(f"{out.name}.log")
    began, costs = time.process_time(), out.with_name(f"{out.name}.json")
    if not (out / "model").exists():
        shutil.rmtree(out, ignore_errors=True)
        with quiet(log) as console, patch(), measured() as spent:
            runs.train_run(config, out, console=console)
        share = round(spent["watching"] / spent["steps"], 5)
        costs.write_text(json.dumps([time.process_time() - began, share]))
    seconds, share = json.loads(costs.read_text()) if costs.exists() else (0.0, 0.0)
    found = diagnose(read_history(out))
    live = [line.split(":")[0] for line in log.read_text().split("doctor, step ")[1:]]
    return {
        "findings": [finding.title for finding in found.findings],
        "live": live,
        "cpu_seconds": round(seconds, 1),
        "watching_share": share,
    }


def scenes(folder: Path) -> SceneFiles:
    """Write the scenes once, with a plain list of their pairs."""
    files = SceneFiles(folder)
    if not (folder / "plain.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        write_scenes(
            folder,
            IMAGES,
            num_val=8,
            num_test=8,
            num_compositional=8,
            formats=("captions", "vqa"),
            captions_per_image=1,
        )
        records = read_records(scene_source(files, "caption", "train")).records
        pairs = [{"image": str(r.image.path), "caption": str(r.caption)} for r in records]
        (folder / "plain.json").write_text(json.dumps(pairs))
    return files


def run_seed(
    seed: int, files: SceneFiles, folder: Path, only: Sequence[str] | None
) -> dict[str, dict[str, Any]]:
    """Return what the doctor finds in each run with a seed, of which `only` names some."""
    folder.mkdir(exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    for name, start in HEALTHY.items():
        if only and name not in only:
            continue
        config = short(build_recipe(name, "tiny"), _source_of(name, files), seed, STEPS)
        if start is not None:
            config = replace(
                config, model=replace(config.model, init_from=str(folder / start / "model"))
            )
        found[name] = train(config, folder / name)
    for name, fault in (FAULTS | ELSEWHERE).items():
        if only and name not in only:
            continue
        source = write_pairs(fault, files, folder / name)
        config = short(build_recipe(fault.recipe, "tiny"), source, seed, fault.steps)
        found[name] = train(fault.change(config), folder / name, fault.patch)
    return found


def named(found: Mapping[str, Mapping[str, Any]], faults: Mapping[str, Fault]) -> list[str]:
    """Return the faults that the doctor has named, of those that were run."""
    return [
        name
        for name, fault in faults.items()
        if name in found
        and any(title.split(" (")[0] in fault.names for title in found[name]["findings"])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/lab_doctor"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    files = scenes(options.out / "scenes")
    seeds = {
        seed: run_seed(seed, files, options.out / f"seed{seed}", options.only)
        for seed in options.seeds
    }
    every = [run for found in seeds.values() for run in found.values()]
    elsewhere = [
        name in named(found, ELSEWHERE)
        for found in seeds.values()
        for name in ELSEWHERE.keys() & found.keys()
    ]
    healthy = [found[name] for found in seeds.values() for name in HEALTHY if name in found]
    print(
        json.dumps(
            {
                "doctor_faults": min(len(named(found, FAULTS)) for found in seeds.values()),
                "false_alarms": sum(len(run["findings"]) for run in healthy),
                "faults": len(FAULTS),
                "named": sum(len(named(found, FAULTS)) for found in seeds.values()),
                "faults_elsewhere": len(elsewhere),
                "missed_elsewhere": elsewhere.count(False),
                "healthy_runs": len(healthy),
                "steps": STEPS,
                "batch": BATCH,
                "watching_share": max(run["watching_share"] for run in every),
                "runs": {f"seed {seed}": found for seed, found in seeds.items()},
            }
        )
    )


def _source_of(recipe: str, files: SceneFiles) -> DataSourceConfig:
    return scene_source(files, "vqa" if recipe.endswith("vqa") else "caption", "train")


if __name__ == "__main__":
    main()
