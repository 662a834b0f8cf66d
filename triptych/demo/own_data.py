"""The demo on the user's own images: check, pre-train on most of them, score the others."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from triptych.core.console import Console
from triptych.core.errors import DataError
from triptych.data.check import check_sources
from triptych.data.held_out import HeldOut, hold_out
from triptych.data.manifest import FoundRecords, read_records
from triptych.data.records import Record
from triptych.data.skips import share_to_allow
from triptych.data.source import DataSourceConfig
from triptych.demo.measure import time_evaluation
from triptych.demo.plan import Speeds, plan_own
from triptych.demo.scoring import evaluate_task
from triptych.demo.state import Demo, DemoSettings
from triptych.recipes.changes import shortened
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.train.validation import ValidationConfig
from triptych.workflows.run import finish_run, is_finished
from triptych.workflows.sources import check_fields
from triptych.workflows.step_costs import time_steps

RECIPE = "mplug.pretrain"
HELD_OUT = "held out"
"""The split of own data that training does not see."""

MIN_IMAGES = 8
NUM_HELD_OUT = 500
"""Images that are held out of a large dataset; of a small one, a fifth."""

SHARES = (0.2, 0.3, 0.4, 0.5)
"""Of a small dataset; a larger one is taken where the names' hashes leave nothing held out."""

MOST_OPENED = 5_000
"""Images up to which each one is opened by the check, and indexed at the end."""

VALIDATIONS = 5
SHOWN_PROBLEMS = 5

EXPECTATIONS = (
    (
        1_000,
        "The model starts from random weights, and so few images are mostly learned by heart: "
        "expect it to find a new image more often than chance does, and captions that miss much.",
    ),
    (
        10_000,
        "The model starts from random weights: expect search by words to work for what is common "
        "in these images, and captions to miss what is rare.",
    ),
)
"""What to expect of a model, by the images below which it holds."""


@dataclass(frozen=True, slots=True)
class OwnData:
    """A dataset of the user's, read and divided.

    Attributes:
        source: Where it is.
        train: The records to train on.
        held_out: Those of the images that training does not see.
        num_images: Distinct images, with captions.
        share: What `data.val_share` is, to divide it so.
        indexed: What is indexed: everything, or of many images the held-out ones.
        notes: What a user should know of it.
        start_s: Seconds of processor time until it was read, which is what starting takes.
        check_s: Seconds that reading and checking took.
    """

    source: DataSourceConfig
    train: Sequence[Record]
    held_out: Sequence[Record]
    num_images: int
    share: float
    indexed: FoundRecords
    notes: tuple[str, ...]
    start_s: float
    check_s: float


def read_own_data(settings: DemoSettings, source: DataSourceConfig, console: Console) -> OwnData:
    """Read a dataset, list its problems, and divide it; write nothing.

    Args:
        settings: What was asked for.
        source: Where it is.
        console: Where to report.

    Raises:
        DataError: It cannot be read, too much of it is bad, or there are too few images with
            captions.
    """
    start, start_s = time.perf_counter(), time.process_time()
    found = read_records(source)
    check_fields(found.records, ("image", "caption"), source.path, RECIPE)
    records = [r for r in found.records if r.image is not None and r.caption]
    num_images = len({record.image for record in records})
    if num_images < MIN_IMAGES:
        raise DataError(
            f"{source.path} holds {num_images} images with captions: the demo needs at least "
            f"{MIN_IMAGES}, since it trains on some and is scored on the others; some hundred are "
            "the least to learn from"
        )
    notes = [f"{source.path} holds {num_images:,} images with {len(records):,} captions."]
    if num_images <= MOST_OPENED:
        notes += _problems(source, settings.max_bad_share, console)
    else:
        notes.append(
            f"Its images were not all opened: `triptych data check {source.path}` does so."
        )
    divided, share = _divide(records, num_images, source.path)
    notes.append(
        f"{divided.num_images:,} of its images were held out: training never saw them, and all "
        "scores are from them."
    )
    notes += [text for below, text in EXPECTATIONS if num_images < below][:1]
    indexed = records if num_images <= MOST_OPENED else divided.held_out
    if indexed is not records:
        notes.append(
            "The index holds the held-out images; `triptych index` builds one of all images."
        )
    return OwnData(
        source=source,
        train=divided.train,
        held_out=divided.held_out,
        num_images=num_images,
        share=share,
        indexed=FoundRecords(indexed, ()),
        notes=tuple(notes),
        start_s=start_s,
        check_s=time.perf_counter() - start,
    )


def _problems(source: DataSourceConfig, max_bad_share: float, console: Console) -> list[str]:
    """Open all images; print what is wrong, and return it in words.

    Raises:
        DataError: Too much is bad.
    """
    report = check_sources([source])
    console.print("\n".join(report.lines()), markup=False, highlight=False, soft_wrap=True)
    if report.bad_share > max_bad_share:
        first = "; ".join(f"{s.where}: {s.message}" for s in report.skipped[:SHOWN_PROBLEMS])
        raise DataError(
            f"{source.path}: {report.num_bad:,} of {report.num_total:,} entries cannot be used, "
            f"more than the {max_bad_share:.0%} that is allowed. The first: {first}. Fix or remove "
            f"them, or allow more with --max-bad-share {share_to_allow(report.bad_share):g}"
        )
    if not report.num_bad:
        return []
    shown = "; ".join(f"{s.where}: {s.message}" for s in report.skipped[:SHOWN_PROBLEMS])
    return [f"{report.num_bad:,} entries cannot be used and were skipped, such as {shown}."]


def _divide(records: Sequence[Record], num_images: int, where: str) -> tuple[HeldOut, float]:
    """Hold images out, as training does with `data.val_share`; return the share too."""
    shares = [min(SHARES[0], NUM_HELD_OUT / num_images), *SHARES[1:]]
    for share in shares[:-1]:
        try:
            return hold_out([records], share, where)[0], share
        except DataError:  # too few images for the share
            continue
    return hold_out([records], shares[-1], where)[0], shares[-1]


def run_own_data(demo: Demo, own: OwnData) -> None:
    """Do each stage that is not done: plan, pre-training, and scores on what was held out."""
    demo.notes += own.notes
    demo.times_s["check"] = demo.times_s.get("check", 0.0) + own.check_s
    run = _run(demo, own)
    if demo.plan is None:
        _plan(demo, own, run)
    size = demo.size
    run = shortened(run, size.pretrain_steps, run.train.max_steps)
    every = max(1, size.pretrain_steps // VALIDATIONS)
    demo.configs["pretrain"] = replace(
        run,
        data=replace(run.data, val_share=own.share),
        validation=ValidationConfig(every_steps=every),
    )
    epochs = size.pretrain_steps * run.train.global_batch_size / len(own.train)
    demo.notes.append(
        f"It was trained for {size.pretrain_steps:,} steps of {run.train.global_batch_size} "
        f"captions, which are {epochs:.3g} epochs."
    )
    with demo.timed("pretrain", f"pre-training: {size.pretrain_steps:,} steps"):
        if not is_finished(demo.run("pretrain")):
            finish_run(demo.configs["pretrain"], demo.run("pretrain"), console=demo.console)
    with demo.timed("evaluation", f"evaluating on {HELD_OUT} images"):
        for task in ("retrieval", "caption"):
            demo.scores += evaluate_task(
                demo,
                task,
                HELD_OUT,
                own.source,
                FoundRecords(own.held_out, ()),
                own.train,
                max_bad_share=1.0,  # the share of all is known to be small enough
            )


def _run(demo: Demo, own: OwnData) -> RunConfig:
    """Return the recipe's run on the data, with batches that hold no image twice."""
    config = build_recipe(RECIPE, demo.size.recipes)
    settings = demo.settings
    batch = min(config.train.global_batch_size, 2 ** (len(own.train).bit_length() - 1))
    return replace(
        config,
        data=replace(
            config.data,
            train=(own.source,),
            seed=settings.seed,
            max_bad_share=settings.max_bad_share,
        ),
        train=replace(
            config.train,
            global_batch_size=batch,
            seed=settings.seed,
            num_threads=settings.num_threads,
        ),
    )


def _plan(demo: Demo, own: OwnData, run: RunConfig) -> None:
    """Choose the steps: no more than the data is good for, nor than fit into the budget."""
    batch = run.train.global_batch_size
    if demo.budget_s is not None:
        with demo.timed("measuring", "measuring this machine"):
            demo.speeds = _measure(demo, own, run)
    demo.plan = plan_own(
        demo.settings.size,
        num_train=len(own.train),
        num_held_out=len(own.held_out),
        batch=batch,
        speeds=demo.speeds,
        left_s=None if demo.budget_s is None else demo.budget_s - demo.spent_s(),
    )
    demo.save()


def _measure(demo: Demo, own: OwnData, run: RunConfig) -> Speeds:
    """Time a few steps and evaluation, with a model of its own."""
    folder = demo.folder / "measuring"
    shutil.rmtree(folder, ignore_errors=True)  # of a demo that was killed
    step_s = time_steps(run, folder)
    most = min(own.num_images, 64)
    image_s = time_evaluation(folder / "model", run, most, demo.size.rerank_top_k)
    shutil.rmtree(folder)
    return Speeds(
        start_s=own.start_s,
        scene_s=0.0,
        pretrain_step_s=step_s,
        vqa_step_s=0.0,
        grounding_step_s=0.0,
        evaluation_image_s=image_s,
        at_once=False,
    )
