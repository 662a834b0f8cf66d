"""Stages one after the other, VLMo's or FLAVA's: each a run that starts from the one before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from triptych.core.config import check, load_yaml, save_yaml
from triptych.core.console import Console
from triptych.core.errors import CheckpointError, ConfigError, DataError
from triptych.core.files import make_folder
from triptych.core.machine import num_cores
from triptych.data.manifest import read_records
from triptych.data.records import JoinedRecords, Record
from triptych.data.source import DataSourceConfig
from triptych.models.dvae.config import codebook_image_size
from triptych.models.families import model_config, model_sizes
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.scenes.config import SceneConfig
from triptych.tasks.pretraining import image_tokenizer
from triptych.text import Tokenizer
from triptych.train.trainer import TrainResult
from triptych.workflows.run import (
    MODEL_FOLDER,
    PLANS,
    finish_run,
    is_finished,
    prepare_tokenizer,
)
from triptych.workflows.scene_data import SCENES, scene_source, write_once

IMAGE_TOKENIZER = "image_tokenizer"
"""The first stage of each family: it makes the targets of the second."""

STAGES = {
    "vlmo": {
        IMAGE_TOKENIZER: "dvae",
        "vision": "vlmo.vision",
        "language": "vlmo.language",
        "pretrain": "vlmo.pretrain",
    },
    "flava": {
        IMAGE_TOKENIZER: "dvae",
        "image": "flava.image",
        "text": "flava.text",
        "joint": "flava.joint",
    },
}
"""By family, the recipe of each stage, in order."""

IMAGE_OBJECTIVES = {"mim": "flava.image", "dino": "dino"}
"""FLAVA's recipes for the stage on images, by objective."""

ON_TEXTS = ("language", "text")
"""Stages that read texts alone."""

JOINT_RATIOS = {"pair": 8.0, "image": 1.0, "text": 1.0}
"""How often a step of FLAVA's joint stage draws each kind of source (the paper's ratios are not
known); the stages before it have trained both encoders on images and on texts alone."""

TEXT_TOKENIZER = "text_tokenizer"

CLOSE_UPS = {"smoke": 24, "tiny": 12_000, "small": 50_000}
"""Further pairs for FLAVA, of scenes with one object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StagewisePlan:
    """What all stages share.

    Attributes:
        family: vlmo or flava.
        scale: smoke, tiny, small, base or large.
        pairs: Images with captions.
        texts: Texts for the stage on texts alone and, in FLAVA, for the joint one; empty takes the
            captions.
        images: Images alone, for the stages on them; empty takes those of the pairs.
        image_objective: How FLAVA's image encoder learns from images: mim masks patches, dino
            compares crops (the paper's final choice). VLMo's is always mim.
        words: Further data whose words the text tokenizer must know, such as questions.
        image_tokenizer: A model folder with a dVAE; None trains one on the images first.
        text_tokenizer: A `tokenizer.json`, `vocab.txt` or folder; None trains one on all texts.
        seed: Seed of order, masks and dropout.
        num_threads: CPU threads of all processes together; None takes all cores.
    """

    family: str = "vlmo"
    scale: str
    pairs: tuple[DataSourceConfig, ...]
    texts: tuple[DataSourceConfig, ...] = ()
    images: tuple[DataSourceConfig, ...] = ()
    image_objective: Literal["mim", "dino"] = "mim"
    words: tuple[DataSourceConfig, ...] = ()
    image_tokenizer: str | None = None
    text_tokenizer: str | None = None
    seed: int = 0
    num_threads: int | None = None

    def __post_init__(self) -> None:
        """Reject a plan without data, and families without stages."""
        known = f"be one of {', '.join(STAGES)}"
        check(self.family in STAGES, "family", self.family, known)
        check_image_objective(self.family, self.image_objective)
        check(len(self.pairs) > 0, "pairs", self.pairs, "name images with captions")
        check(self.seed >= 0, "seed", self.seed, "be at least 0")


def check_image_objective(family: str, objective: str) -> None:
    """Raise a ConfigError where a family's image stage has no such objective."""
    known = tuple(IMAGE_OBJECTIVES) if family == "flava" else ("mim",)
    must = f"be {' or '.join(known)} for {family}"
    check(objective in known, "image_objective", objective, must)


def scene_plan(
    folder: Path,
    scale: str,
    *,
    family: str = "vlmo",
    image_objective: Literal["mim", "dino"] = "mim",
    seed: int = 0,
    num_threads: int | None = None,
) -> StagewisePlan:
    """Write built-in scenes, unless they are there, and return the plan that trains on them.

    The language stage reads sentences about scenes of their own. Questions are written too, for
    fine-tuning, and the text tokenizer learns their words.

    FLAVA's joint stage has close-ups as a second source of pairs, scenes with one object. Colours
    and sizes alone distinguish scenes of several objects, so GC has little reason to learn
    shapes; in a batch of close-ups it has.

    Args:
        folder: Receives the scenes, and the close-ups in `close_ups/`.
        scale: smoke, tiny or small.
        family: vlmo or flava.
        image_objective: Of the stage on images, see `StagewisePlan`.
        seed: Seed of scenes and training.
        num_threads: CPU threads; None for all cores.

    Raises:
        ConfigError: The scale is the paper's, which needs real images; the seed is below 0; or
            the folder holds scenes of another seed or number.
    """
    check_image_objective(family, image_objective)
    check(seed >= 0, "seed", seed, "be at least 0")
    if scale not in SCENES:
        raise ConfigError(
            f"scale = {scale!r} without data: name pairs with --data, or take one of "
            f"{', '.join(SCENES)}"
        )
    size = 12 if scale == "smoke" else 500
    files = write_once(
        folder,
        scale,
        SCENES[scale],
        num_val=8,
        num_test=size,
        config=SceneConfig(seed=seed),
        formats=("captions", "vqa", "text"),
    )
    scenes = scene_source(files, "caption", "train")
    pairs: tuple[DataSourceConfig, ...] = (scenes,)
    if family == "flava":
        close_ups = write_once(
            folder / "close_ups",
            scale,
            CLOSE_UPS[scale],
            num_val=0,
            num_test=0,
            config=SceneConfig(seed=seed, object_count_weights=(1.0,)),
            formats=("captions",),
        )
        closer = replace(scene_source(close_ups, "caption", "train"), name="close_ups")
        pairs = (replace(scenes, name="scenes"), closer)
    return StagewisePlan(
        family=family,
        scale=scale,
        pairs=pairs,
        texts=(DataSourceConfig(path=str(files.corpus), reader="text"),),
        images=(scenes,),
        image_objective=image_objective,
        words=(scene_source(files, "vqa", "train"),),
        seed=seed,
        num_threads=num_threads,
    )


def plan_stages(plan: StagewisePlan, folder: Path) -> dict[str, RunConfig]:
    """Return the run of each stage; they read and write below `folder`.

    The first stage that can take the image tokenizer does; later ones find it in the model.
    """
    runs = {}
    before: str | None = None
    codes: str | None = plan.image_tokenizer or str(folder / IMAGE_TOKENIZER / MODEL_FOLDER)
    for stage in STAGES[plan.family]:
        if stage == IMAGE_TOKENIZER and plan.image_tokenizer is not None:
            continue
        config = _stage_recipe(plan, stage)
        config = replace(
            config,
            data=replace(config.data, train=_sources(plan, stage), seed=plan.seed),
            train=replace(config.train, seed=plan.seed, num_threads=plan.num_threads),
            tokenizer=replace(
                config.tokenizer, path=plan.text_tokenizer or str(folder / TEXT_TOKENIZER)
            ),
        )
        if stage == IMAGE_TOKENIZER:
            runs[stage] = _at_patches(config, plan)
            continue
        task: Any = config.task
        if codes is not None and hasattr(task, "image_tokenizer"):
            config = replace(config, task=replace(task, image_tokenizer=codes))
            codes = None
        if before is not None:
            init_from = str(folder / before / MODEL_FOLDER)
            config = replace(config, model=replace(config.model, init_from=init_from))
        runs[stage] = _on_all_cores(config, plan.num_threads)
        before = stage
    return runs


def _stage_recipe(plan: StagewisePlan, stage: str) -> RunConfig:
    """Return the recipe of a stage, for the family's model."""
    recipe = STAGES[plan.family][stage]
    config = build_recipe(recipe, plan.scale)
    if (plan.family, stage) != ("flava", "image"):
        return config
    chosen = build_recipe(IMAGE_OBJECTIVES[plan.image_objective], plan.scale)
    return replace(chosen, model=config.model)


def _sources(plan: StagewisePlan, stage: str) -> tuple[DataSourceConfig, ...]:
    """Return what a stage trains on."""
    texts, images = plan.texts or plan.pairs, plan.images or plan.pairs
    if stage in ON_TEXTS:
        return texts
    if stage == "joint":
        kinds = {"pair": plan.pairs, "image": images, "text": texts}
        return tuple(
            replace(
                source,
                kind=kind,
                ratio=JOINT_RATIOS[kind] / len(sources),
                name=source.name or (kind if len(sources) == 1 else None),
            )
            for kind, sources in kinds.items()
            for source in sources
        )
    return images if stage in (IMAGE_TOKENIZER, "image", "vision") else plan.pairs


def train_stagewise(
    plan: StagewisePlan, folder: Path, *, console: Console | None = None
) -> TrainResult:
    """Train all stages; `last_stage(folder)` is then where the model folder is.

    Args:
        plan: Scale, data and seed.
        folder: Receives `stages/`, `text_tokenizer/` and one run folder a stage; new or empty but
            for other names.
        console: Where to report; standard output if absent.

    Raises:
        ConfigError: The folder holds stages already.
        DataError: No record of a source has what a stage reads of it, or there is no text
            tokenizer where one is named.
        CheckpointError: There is no image tokenizer where one is named.
    """
    if is_stagewise(folder):
        raise ConfigError(
            f"{folder} holds the stages of an earlier run: continue with "
            f"`triptych train {folder} --resume`, or choose another folder with --out"
        )
    trained = (*plan.pairs, *plan.texts, *plan.images)
    wordy = (*plan.pairs, *plan.texts, *plan.words) if plan.text_tokenizer is None else ()
    found = {s: read_records(s).records for s in dict.fromkeys((*trained, *wordy))}
    _check_sources(plan, found)
    if plan.image_tokenizer is not None:
        image_tokenizer.load(plan.image_tokenizer)  # a wrong name leaves no folder behind
    if plan.text_tokenizer is not None:
        Tokenizer.load(plan.text_tokenizer)
    make_folder(folder)
    if plan.text_tokenizer is None:
        records = JoinedRecords([found[source] for source in dict.fromkeys(wordy)])
        config = build_recipe(list(STAGES[plan.family].values())[-1], plan.scale)
        prepare_tokenizer(config, records).save(folder / TEXT_TOKENIZER)
    for stage, config in plan_stages(plan, folder).items():
        save_yaml(config, folder / PLANS / f"{stage}.yaml")
    return resume_stagewise(folder, console=console)


def _check_sources(plan: StagewisePlan, found: Mapping[DataSourceConfig, Sequence[Record]]) -> None:
    """Raise before the first stage where a later one would find nothing to train on."""
    needs: tuple[tuple[str, tuple[DataSourceConfig, ...], Callable[[Record], object], str], ...] = (
        (
            "pairs",
            plan.pairs,
            lambda r: r.image is not None and r.caption,
            "an image and a caption",
        ),
        ("texts", plan.texts, lambda r: r.text or r.caption, "a text"),
        ("images", plan.images, lambda r: r.image is not None, "an image"),
    )
    for what, sources, has, needed in needs:
        for source in sources:
            if not any(has(record) for record in found[source]):
                raise DataError(f"{source.path}, given as {what}: no record has {needed}")


def resume_stagewise(
    folder: Path, *, accept_changed_data: bool = False, console: Console | None = None
) -> TrainResult:
    """Go on with the first stage that is not done, from its last checkpoint.

    Raises:
        CheckpointError: The folder holds no stages, or the data of a stage has changed since it
            was begun and that is not accepted.
    """
    family = _family(folder)
    if family is None:
        raise CheckpointError(f"{folder} holds no stages to resume: there is no {PLANS}/")
    console = console or Console()
    stages = list(STAGES[family])
    result: TrainResult | None = None
    for stage in stages:
        path = folder / PLANS / f"{stage}.yaml"
        if not path.is_file() or (is_finished(folder / stage) and stage != stages[-1]):
            continue
        config = load_yaml(RunConfig, path)
        console.print(f"stage {stage}: {config.train.max_steps:,} steps of {config.recipe}")
        accept = accept_changed_data
        result = finish_run(config, folder / stage, accept_changed_data=accept, console=console)
    assert result is not None
    return result


def is_stagewise(folder: Path) -> bool:
    """Return whether a folder was made by `train_stagewise`."""
    return _family(folder) is not None


def last_stage(folder: Path) -> Path:
    """Return the run folder of the last stage of a folder that `train_stagewise` made."""
    family = _family(folder)
    assert family is not None, "the folder holds no stages"
    return folder / list(STAGES[family])[-1]


def _family(folder: Path) -> str | None:
    """Return whose stages a folder holds."""
    for family, stages in STAGES.items():
        if (folder / PLANS / f"{list(stages)[-1]}.yaml").is_file():
            return family
    return None


def _at_patches(config: RunConfig, plan: StagewisePlan) -> RunConfig:
    """Return the image tokenizer's run at the size where one code stands for one patch."""
    recipe = list(STAGES[plan.family].values())[1]
    model = model_config(build_recipe(recipe, plan.scale).model.name)
    side = model.vision.image_size if plan.family == "flava" else model.image_size
    size = codebook_image_size(side, model_sizes(model).patch_size)
    return replace(config, model=replace(config.model, image_size=size))


def _on_all_cores(config: RunConfig, num_threads: int | None) -> RunConfig:
    """Return a run that keeps two cores busy: two processes on a CPU.

    A small model in one process does not.
    """
    train = config.train
    small = config.scale in ("tiny", "small") and not torch.cuda.is_available()
    if not small or (num_threads or num_cores()) < 2 or train.global_batch_size % 2:
        return config
    threads = None if num_threads is None else max(1, num_threads // 2)
    halved = replace(
        train,
        num_processes=2,
        num_threads=threads,
    )
    return replace(config, train=halved)
