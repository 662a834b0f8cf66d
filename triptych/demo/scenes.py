"""The built-in scenes of the demo, and the runs that train on them.

Scenes are written in public formats and read back by the readers that real datasets use.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

from triptych.data.manifest import read_records
from triptych.demo.measure import time_evaluation
from triptych.demo.plan import DemoSize, Speeds
from triptych.demo.state import DemoSettings
from triptych.recipes.changes import shortened
from triptych.recipes.config import GuardConfig, RunConfig
from triptych.recipes.registry import build_recipe
from triptych.scenes.config import SceneConfig
from triptych.scenes.layout import SceneFiles
from triptych.scenes.write import write_scenes
from triptych.workflows.run import prepare_tokenizer
from triptych.workflows.scene_data import scene_source
from triptych.workflows.side_by_side import threads_at_once
from triptych.workflows.step_costs import time_steps

FORMATS = ("captions", "vqa", "refs")
STAGES = {
    "pretrain": ("mplug.pretrain", "caption"),
    "vqa": ("mplug.vqa", "vqa"),
    "grounding": ("mplug.grounding", "grounding"),
}
"""Recipe, and the task whose format holds its data, of each stage in order."""

TRIAL_SCENES = 256


def write_demo_scenes(folder: Path, size: DemoSize, seed: int) -> SceneFiles:
    """Write the scenes of a demo."""
    return write_scenes(
        folder,
        size.num_images,
        num_val=8,
        num_test=size.num_test,
        num_compositional=size.num_test,
        config=SceneConfig(seed=seed),
        formats=FORMATS,
        captions_per_image=1,
        num_workers=2 if size.num_images > 1000 else 1,
    )


def train_tokenizer(folder: Path, files: SceneFiles, size: DemoSize) -> None:
    """Train on the texts of all tasks: captions alone lack the words of many answers."""
    records = [
        record
        for _, task in STAGES.values()
        for record in read_records(scene_source(files, task, "train")).records
    ]
    prepare_tokenizer(build_recipe("mplug.pretrain", size.recipes), records).save(folder)


def demo_runs(
    folder: Path, files: SceneFiles, size: DemoSize, settings: DemoSettings
) -> dict[str, RunConfig]:
    """Return the runs of the demo by stage, in order; they read `folder / "tokenizer"`.

    Args:
        folder: Of the demo.
        files: Its scenes.
        size: With the steps of each stage; fewer than the scale has shorten the schedules.
        settings: What was asked for.
    """
    runs = {}
    for stage, (recipe, task) in STAGES.items():
        config = build_recipe(recipe, size.recipes)
        model, tokenizer, guard = config.model, config.tokenizer, config.guard
        if stage == "pretrain":
            tokenizer = replace(tokenizer, path=str(folder / "tokenizer"))
        else:
            model = replace(model, init_from=str(folder / "pretrain" / "model"))
            guard = GuardConfig(data=(scene_source(files, "caption", "test"),))
        config = replace(
            config,
            model=model,
            guard=guard,
            tokenizer=tokenizer,
            data=replace(
                config.data, train=(scene_source(files, task, "train"),), seed=settings.seed
            ),
            train=replace(config.train, seed=settings.seed, num_threads=settings.num_threads),
        )
        runs[stage] = shortened(config, size.steps(stage), settings.size.steps(stage))
    return runs


def measure_scenes(folder: Path, settings: DemoSettings) -> Speeds:
    """Time a few scenes, a few steps of every stage, and evaluation, with a model of its own.

    Args:
        folder: Of the demo; nothing stays there.
        settings: What was asked for.
    """
    start_s = time.process_time()  # nothing but starting and importing has taken it so far
    own = folder / "measuring"
    shutil.rmtree(own, ignore_errors=True)  # of a demo that was killed
    full = settings.size
    few = replace(full, num_images=min(full.num_images, TRIAL_SCENES), num_test=8)
    start = time.perf_counter()
    files = write_demo_scenes(own / "data", few, settings.seed)
    train_tokenizer(own / "tokenizer", files, few)
    scene_s = (time.perf_counter() - start) / (few.num_images + 3 * 8)
    runs = demo_runs(own, files, full, settings)
    share = threads_at_once(2, settings.num_threads)
    steps_s = {}
    for stage, run in runs.items():
        if stage != "pretrain" and share is not None:
            run = replace(run, train=replace(run.train, num_threads=share))
        steps_s[stage] = time_steps(run, own / stage)
    model = own / "pretrain" / "model"
    most = min(few.num_images, 64)
    evaluation_image_s = time_evaluation(model, runs["pretrain"], most, full.rerank_top_k)
    shutil.rmtree(own)
    return Speeds(
        start_s=start_s,
        scene_s=scene_s,
        pretrain_step_s=steps_s["pretrain"],
        vqa_step_s=steps_s["vqa"],
        grounding_step_s=steps_s["grounding"],
        evaluation_image_s=evaluation_image_s,
        at_once=share is not None,
    )
