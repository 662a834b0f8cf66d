"""The demo: from scratch to measured models and an index of images.

Training, evaluation and indexing are the recipes and the functions that a user calls.
"""

from __future__ import annotations

from pathlib import Path

from triptych.core.console import Console
from triptych.core.files import folder_for_one
from triptych.data.manifest import FoundRecords, read_records
from triptych.data.records import JoinedRecords
from triptych.data.source import DataSourceConfig
from triptych.demo.own_data import OwnData, read_own_data, run_own_data
from triptych.demo.plan import plan_demo, plan_finetuning
from triptych.demo.scenes import demo_runs, measure_scenes, train_tokenizer, write_demo_scenes
from triptych.demo.scoring import SPLITS, evaluate_scenes, training_records
from triptych.demo.state import Demo, DemoSettings, check_folder, open_demo
from triptych.index.build import build_index
from triptych.scenes.layout import SceneFiles
from triptych.serving.loading import load_model
from triptych.workflows.run import finish_run, is_finished
from triptych.workflows.scene_data import scene_source
from triptych.workflows.side_by_side import train_side_by_side


def run_demo(folder: Path, settings: DemoSettings, *, console: Console | None = None) -> Demo:
    """Train a small mPLUG on scenes or on own data, evaluate it, and index unseen images.

    On the scenes it pre-trains, and fine-tunes for questions and for phrases. In the folder of an
    interrupted demo, go on where it was: what is finished is kept, and what is half trained
    continues from its last checkpoint.

    Args:
        folder: Receives `demo.json`, data, one run folder a stage, and `index/`; must be new,
            empty, or that of a demo with the same settings.
        settings: What to do.
        console: Where to report; standard output if absent.

    Raises:
        ConfigError: The folder is in use.
        DataError: Own data cannot be used; nothing was written.
    """
    check_folder(folder, settings)
    console = console or Console()
    own: OwnData | None = None
    if settings.data is not None:
        own = read_own_data(settings, settings.data, console)
    with folder_for_one(folder):
        demo = open_demo(folder, settings, console)
        if own is None:
            _run_scenes(demo)
            unseen = [read_records(scene_source(_files(demo), "caption", s)) for s in SPLITS]
            images = FoundRecords(JoinedRecords([found.records for found in unseen]), ())
            source = scene_source(_files(demo), "caption", SPLITS[0])
        else:
            run_own_data(demo, own)
            images, source = own.indexed, own.source
        with demo.timed("index", f"indexing {len(images.records):,} images"):
            _build_index(demo, source, images)
    return demo


def _build_index(demo: Demo, source: DataSourceConfig, images: FoundRecords) -> None:
    """Index images with the pre-trained model."""
    build_index(
        load_model(demo.model("pretrain")),
        source,
        demo.index,
        found=images,
        max_bad_share=1.0 if demo.settings.data is None else demo.settings.max_bad_share,
    )


def _files(demo: Demo) -> SceneFiles:
    return SceneFiles(demo.folder / "data")


def _run_scenes(demo: Demo) -> None:
    """Do each stage that is not done."""
    settings, folder, files, console = demo.settings, demo.folder, _files(demo), demo.console
    if demo.budget_s is not None and demo.plan is None:
        _plan(demo)
    size = demo.size
    with demo.timed("scenes", f"writing {size.num_images:,} scenes"):
        if not files.summary.is_file():
            write_demo_scenes(files.root, size, settings.seed)
        if not (folder / "tokenizer" / "tokenizer.json").is_file():
            train_tokenizer(folder / "tokenizer", files, size)
    demo.configs.update(demo_runs(folder, files, size, settings))
    with demo.timed("pretrain", f"pre-training: {size.pretrain_steps:,} steps"):
        if not is_finished(demo.run("pretrain")):
            finish_run(demo.configs["pretrain"], demo.run("pretrain"), console=console)
    if not any(demo.run(stage).exists() for stage in ("vqa", "grounding")):
        _plan_finetuning(demo)
    demo.configs.update(demo_runs(folder, files, demo.size, settings))
    runs = {stage: demo.configs[stage] for stage in ("vqa", "grounding")}
    steps = " and ".join(f"{run.train.max_steps:,}" for run in runs.values())
    with demo.timed("fine-tuning", f"fine-tuning for questions and for phrases: {steps} steps"):
        train_side_by_side(
            runs,
            {stage: demo.run(stage) for stage in runs},
            num_threads=settings.num_threads,
            console=console,
        )
    train = training_records(files)
    for split in SPLITS:
        with demo.timed(f"evaluation {split}", f"evaluating on {split}"):
            evaluate_scenes(demo, files, split, train)


def _plan(demo: Demo) -> None:
    """Measure the machine, and choose what fits into the budget."""
    assert demo.budget_s is not None
    with demo.timed("measuring", "measuring this machine"):
        demo.speeds = measure_scenes(demo.folder, demo.settings)
    demo.plan = plan_demo(demo.settings.size, demo.speeds, demo.budget_s, demo.spent_s())
    demo.save()
    full, plan = demo.settings.size, demo.plan
    demo.say(
        f"a step takes {demo.speeds.pretrain_step_s:.2f} s here: {demo.settings.minutes:g} minutes "
        f"are good for {plan.pretrain_steps:,} of {full.pretrain_steps:,} steps on "
        f"{plan.num_images:,} of {full.num_images:,} scenes"
        + ("" if demo.is_full else f"; `--scale {demo.settings.scale}` alone sets no limit")
    )


def _plan_finetuning(demo: Demo) -> None:
    """Choose the steps of fine-tuning by what pre-training took."""
    if demo.plan is None or demo.budget_s is None or demo.speeds is None:
        return
    demo.plan = plan_finetuning(
        demo.plan,
        demo.settings.size,
        demo.speeds,
        demo.budget_s,
        demo.spent_s(),
        demo.times_s["pretrain"],
    )
    demo.save()
