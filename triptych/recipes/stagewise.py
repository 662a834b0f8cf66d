"""VLMo's stages one after the other: each a run of its own that starts from the one before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from triptych.core.config import check, load_yaml, save_yaml
from triptych.core.errors import CheckpointError, ConfigError
from triptych.core.machine import num_cores
from triptych.data.manifest import read_records
from triptych.data.source import DataSourceConfig
from triptych.models.dvae.config import codebook_image_size
from triptych.models.registry import model_config
from triptych.recipes.config import RunConfig
from triptych.recipes.demo import scene_source
from triptych.recipes.registry import build_recipe
from triptych.recipes.run import CONFIG_FILE, MODEL_FOLDER, prepare_tokenizer, resume_run, train_run
from triptych.scenes.config import SceneConfig
from triptych.scenes.layout import SceneFiles
from triptych.scenes.write import write_scenes
from triptych.train.trainer import TrainResult

STAGES = {
    "image_tokenizer": "dvae",
    "vision": "vlmo.vision",
    "language": "vlmo.language",
    "pretrain": "vlmo.pretrain",
}
"""The recipe of each stage, in order; the first makes the targets of the second."""

PLANS = "stages"
"""Folder with the config of each stage, which is there before the first one starts."""


TEXT_TOKENIZER = "text_tokenizer"

SCENES = {"smoke": 48, "tiny": 24_000, "small": 100_000}
"""Built-in scenes that a scale trains on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StagewisePlan:
    """What all stages share.

    Attributes:
        scale: smoke, tiny, small, base or large.
        pairs: Pictures with captions.
        texts: Texts for the language stage; empty takes the captions.
        words: Further data whose words the text tokenizer must know, such as questions.
        image_tokenizer: A model folder with a dVAE; None trains one on the pictures first.
        text_tokenizer: A `tokenizer.json`, `vocab.txt` or folder; None trains one on all texts.
        seed: Seed of order, masks and dropout.
        num_threads: CPU threads of all processes together; None takes all cores.
    """

    scale: str
    pairs: tuple[DataSourceConfig, ...]
    texts: tuple[DataSourceConfig, ...] = ()
    words: tuple[DataSourceConfig, ...] = ()
    image_tokenizer: str | None = None
    text_tokenizer: str | None = None
    seed: int = 0
    num_threads: int | None = None

    def __post_init__(self) -> None:
        """Reject a plan without data."""
        check(len(self.pairs) > 0, "pairs", self.pairs, "name pictures with captions")
        check(self.seed >= 0, "seed", self.seed, "be at least 0")


def scene_plan(
    folder: Path, scale: str, *, seed: int = 0, num_threads: int | None = None
) -> StagewisePlan:
    """Write built-in scenes, unless they are there, and return the plan that trains on them.

    The language stage reads sentences about scenes of their own. Questions are written too, for
    fine-tuning, and the text tokenizer learns their words.

    Args:
        folder: Receives the scenes.
        scale: smoke, tiny or small.
        seed: Seed of scenes and training.
        num_threads: CPU threads; None for all cores.

    Raises:
        ConfigError: The scale is the paper's, which needs real pictures.
    """
    if scale not in SCENES:
        raise ConfigError(
            f"scale = {scale!r} without data: name pairs with --data, or take one of "
            f"{', '.join(SCENES)}"
        )
    files = SceneFiles(folder)
    if not files.summary.is_file():
        size = 12 if scale == "smoke" else 500
        write_scenes(
            folder,
            SCENES[scale],
            num_val=8,
            num_test=size,
            num_compositional=size,
            config=SceneConfig(seed=seed),
            formats=("captions", "vqa", "text"),
            captions_per_image=1,
            num_workers=2 if scale != "smoke" else 1,
        )
    return StagewisePlan(
        scale=scale,
        pairs=(scene_source(files, "caption", "train"),),
        texts=(DataSourceConfig(path=str(files.corpus), reader="text"),),
        words=(scene_source(files, "vqa", "train"),),
        seed=seed,
        num_threads=num_threads,
    )


def plan_stages(plan: StagewisePlan, folder: Path) -> dict[str, RunConfig]:
    """Return the run of each stage; they read and write below `folder`."""
    runs = {}
    before: str | None = None
    for stage, recipe in STAGES.items():
        if stage == "image_tokenizer" and plan.image_tokenizer is not None:
            continue
        config = build_recipe(recipe, plan.scale)
        sources = plan.texts if stage == "language" and plan.texts else plan.pairs
        config = replace(
            config,
            data=replace(config.data, train=sources, seed=plan.seed),
            train=replace(config.train, seed=plan.seed, num_threads=plan.num_threads),
            tokenizer=replace(
                config.tokenizer, path=plan.text_tokenizer or str(folder / TEXT_TOKENIZER)
            ),
        )
        if stage == "image_tokenizer":
            runs[stage] = _at_patches(config, plan.scale)
            continue
        if stage == "vision":
            tokenizer = plan.image_tokenizer or str(folder / "image_tokenizer" / MODEL_FOLDER)
            config = replace(config, task=replace(config.task, image_tokenizer=tokenizer))  # type: ignore[type-var]
        if before is not None:
            init_from = str(folder / before / MODEL_FOLDER)
            config = replace(config, model=replace(config.model, init_from=init_from))
        runs[stage] = _on_all_cores(config, plan.num_threads)
        before = stage
    return runs


def train_stagewise(
    plan: StagewisePlan, folder: Path, *, console: Console | None = None
) -> TrainResult:
    """Train all stages; the last one's model folder is `folder / "pretrain" / "model"`.

    Args:
        plan: Scale, data and seed.
        folder: Receives `stages/`, `text_tokenizer/` and one run folder a stage; new or empty but
            for other names.
        console: Where to report; standard output if absent.

    Raises:
        ConfigError: The folder holds stages already.
    """
    if is_stagewise(folder):
        raise ConfigError(
            f"{folder} holds the stages of an earlier run: go on with "
            f"`triptych train {folder} --resume`, or choose another folder with --out"
        )
    if plan.text_tokenizer is None:
        sources = dict.fromkeys((*plan.pairs, *plan.texts, *plan.words))
        records = [record for source in sources for record in read_records(source).records]
        config = build_recipe(STAGES["pretrain"], plan.scale)
        prepare_tokenizer(config, records).save(folder / TEXT_TOKENIZER)
    for stage, config in plan_stages(plan, folder).items():
        save_yaml(config, folder / PLANS / f"{stage}.yaml")
    return resume_stagewise(folder, console=console)


def resume_stagewise(folder: Path, *, console: Console | None = None) -> TrainResult:
    """Go on with the first stage that is not done, from its last checkpoint.

    Raises:
        CheckpointError: The folder holds no stages.
    """
    if not is_stagewise(folder):
        raise CheckpointError(f"{folder} holds no stages to resume: there is no {PLANS}/")
    console = console or Console()
    plans = {stage: folder / PLANS / f"{stage}.yaml" for stage in STAGES}
    result: TrainResult | None = None
    for stage, path in plans.items():
        last = stage == list(STAGES)[-1]
        done = (folder / stage / MODEL_FOLDER / "config.json").is_file()
        if not path.is_file() or (done and not last):
            continue
        config = load_yaml(RunConfig, path)
        console.print(f"stage {stage}: {config.train.max_steps:,} steps of {config.recipe}")
        if (folder / stage / CONFIG_FILE).is_file():
            result = resume_run(folder / stage, console=console)
        else:
            result = train_run(config, folder / stage, console=console)
    assert result is not None
    return result


def is_stagewise(folder: Path) -> bool:
    """Return whether a folder was made by `train_stagewise`."""
    return (folder / PLANS / f"{list(STAGES)[-1]}.yaml").is_file()


def _at_patches(config: RunConfig, scale: str) -> RunConfig:
    """Return the image tokenizer's run at the size where one code stands for one patch."""
    model = model_config(build_recipe(STAGES["vision"], scale).model.name)
    size = codebook_image_size(model.image_size, model.patch_size)
    return replace(config, model=replace(config.model, image_size=size))


def _on_all_cores(config: RunConfig, num_threads: int | None) -> RunConfig:
    """Return a run that keeps two cores busy: two processes of half the batch on a CPU.

    A small model in one process does not.
    """
    train = config.train
    small = config.scale in ("tiny", "small") and not torch.cuda.is_available()
    if not small or (num_threads or num_cores()) < 2 or train.local_batch_size % 2:
        return config
    threads = None if num_threads is None else max(1, num_threads // 2)
    halved = replace(
        train,
        num_processes=2,
        local_batch_size=train.local_batch_size // 2,
        num_threads=threads,
    )
    return replace(config, train=halved)
