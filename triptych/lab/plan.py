"""From a study to the runs that it takes: their data, settings and length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from triptych.core.console import Console
from triptych.core.errors import ConfigError
from triptych.core.reading import read_json_object
from triptych.data.manifest import read_records
from triptych.data.records import JoinedRecords
from triptych.data.source import DataSourceConfig
from triptych.lab.definition import PROBE, Base, Budget, Score, Source, Stage, Study, Variant, World
from triptych.recipes.changes import (
    shortened,
    with_architecture,
    with_changes,
    without_objectives,
)
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.scenes.config import SceneConfig
from triptych.scenes.layout import SceneFiles
from triptych.scenes.write import write_scenes
from triptych.tasks.registry import recipe_needs, ways_to_score
from triptych.train.precision import resolve_precision
from triptych.workflows.run import MODEL_FOLDER, prepare_tokenizer
from triptych.workflows.scene_data import FORMATS_OF_NEEDS, format_source

MAIN = "train"
"""Folder of a variant's own run, beside those of the stages after it."""

SMOKE_TRAIN, SMOKE_TEST, SMOKE_STEPS = 48, 12, 4

CAPTIONS = "captions"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a study is run.

    Attributes:
        seeds: How many; they count from 0.
        num_threads: CPU threads of a run; None leaves torch's choice.
        data: Images with captions in place of the built-in scenes; empty for these.
        held_out: Such data that no run trains on.
    """

    seeds: int = 3
    num_threads: int | None = None
    data: tuple[DataSourceConfig, ...] = ()
    held_out: tuple[DataSourceConfig, ...] = ()

    def __post_init__(self) -> None:
        """Reject studies without seeds."""
        if not 1 <= self.seeds <= 1000:
            raise ConfigError(f"seeds = {self.seeds}: must be from 1 to 1,000")


@dataclass(frozen=True, slots=True)
class Part:
    """A run of a chain.

    Attributes:
        name: Of the stage; `MAIN` for a variant's own run.
        folder: Its run folder.
        config: What to do; of a stage after a variant, once that has its model.
    """

    name: str
    folder: Path
    config: RunConfig


def at_scale(study: Study, scale: str, budget: Budget | None) -> Study:
    """Return a study at another scale of its recipes and with another budget.

    At scale smoke, which tries out a study of another scale, scenes and steps are few.

    Args:
        study: The study.
        scale: Of all recipes.
        budget: What a variant may spend; None keeps the study's, but for scale smoke.
    """
    own = study.scale
    study = replace(study, scale=scale, budget=budget or study.budget)
    if scale != "smoke" or own == "smoke":
        return study
    worlds = tuple(
        replace(w, train=min(w.train, SMOKE_TRAIN), test=min(w.test, SMOKE_TEST))
        for w in study.worlds
    )
    few = {
        field: tuple(replace(s, steps=min(s.steps or SMOKE_STEPS, SMOKE_STEPS)) for s in stages)
        for field, stages in (("stages", study.stages), ("after", study.after))
    }
    if budget is None:
        batch = build_recipe(study.base.recipe, scale).train.global_batch_size
        batch = study.base.set.get("train.global_batch_size", batch)
        study = replace(study, budget=Budget(samples=SMOKE_STEPS * batch))
    return replace(study, worlds=worlds, stages=few["stages"], after=few["after"])


@dataclass(frozen=True, slots=True)
class Plan:
    """A study in its folder.

    Attributes:
        study: What is compared.
        settings: How.
        folder: Holds everything.
        precision: Of all runs.
    """

    study: Study
    settings: Settings
    folder: Path
    precision: Any

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer that all runs share."""
        return self.folder / "tokenizer"

    def world_files(self, name: str) -> SceneFiles:
        """Return where the scenes of a world lie."""
        return SceneFiles(self.folder / "data" / name)

    def variant_folder(self, variant: str, seed: int) -> Path:
        """Return the folder of a variant's runs with a seed."""
        return self.folder / "runs" / variant / f"seed_{seed}"

    def stage_folder(self, stage: Stage, seed: int | None) -> Path:
        """Return the run folder of a stage."""
        folder = self.folder / "stages" / stage.name
        return folder / f"seed_{seed}" if stage.per_seed else folder

    # ---------------------------------------------------------------------------------- the runs

    def stage_run(self, stage: Stage, seed: int | None) -> Part:
        """Return the run of a stage that comes before the variants; one for all takes seed 0."""
        seed = seed if stage.per_seed else None
        config = self._configured(stage.recipe, [stage], stage.sources, seed)
        own = config.train.max_steps
        config = shortened(config, stage.steps or own, own)
        return Part(stage.name, self.stage_folder(stage, seed), config)

    def whole_run(self, variant: Variant, seed: int) -> RunConfig:
        """Return a variant's run at its recipe's own length."""
        base = self.study.base
        sources = variant.sources or base.sources
        return self._configured(variant.recipe or base.recipe, [base, variant], sources, seed)

    def variant_run(self, variant: Variant, seed: int, steps: int) -> Part:
        """Return a variant's own run, of so many steps."""
        config = self.whole_run(variant, seed)
        config = shortened(config, steps, config.train.max_steps)
        return Part(MAIN, self.variant_folder(variant.name, seed) / MAIN, config)

    def after_run(self, stage: Stage, variant: Variant, seed: int) -> Part:
        """Return the run of a stage that starts from a variant's model."""
        folder = self.variant_folder(variant.name, seed)
        family = (variant.recipe or self.study.base.recipe).partition(".")[0]
        recipe = stage.recipe.replace("{family}", family)
        config = self._configured(recipe, [stage], stage.sources, seed)
        start = replace(config.model, init_from=str(folder / MAIN / MODEL_FOLDER))
        own = config.train.max_steps
        config = shortened(replace(config, model=start), stage.steps or own, own)
        return Part(stage.name, folder / stage.name, config)

    def _configured(
        self,
        recipe: str,
        parts: Sequence[Base | Variant | Stage],
        sources: Sequence[Source],
        seed: int | None,
    ) -> RunConfig:
        """Return a recipe's run with what parts of a study change, the later ones last."""
        config = build_recipe(recipe, self.study.scale)
        architecture: dict[str, Any] = {}
        steps = config.train.max_steps
        for part in parts:
            config = without_objectives(config, getattr(part, "without", ()))
            config = with_changes(config, self._filled(part.set, steps, seed))
            architecture |= part.architecture
        config = with_architecture(config, architecture)
        train, number = config.train, 0 if seed is None else seed
        changed = replace(
            train,
            seed=number,
            num_threads=self.settings.num_threads,
            precision=self.precision if train.precision == "auto" else train.precision,
            keep_checkpoints=1,
            progress="plain" if train.progress == "auto" else train.progress,
        )
        return replace(
            config,
            train=changed,
            tokenizer=replace(config.tokenizer, path=str(self.tokenizer)),
            data=replace(config.data, train=self.sources(sources, recipe), seed=number),
        )

    def _filled(self, fields: Mapping[str, Any], steps: int, seed: int | None) -> dict[str, Any]:
        """Return fields with the folders of stages in place of names in braces, and whole steps."""
        models = {
            "{" + stage.name + "}": str(self.stage_folder(stage, seed) / MODEL_FOLDER)
            for stage in self.study.stages
        }
        return {
            name: models.get(value, value)
            if isinstance(value, str)
            else int(value * steps)
            if isinstance(value, float) and name.endswith("_step")
            else value
            for name, value in fields.items()
        }

    # ---------------------------------------------------------------------------------- the data

    def sources(self, sources: Sequence[Source], recipe: str) -> tuple[DataSourceConfig, ...]:
        """Return what a run trains on.

        Raises:
            ConfigError: Own data stands in for captions alone, and the run reads something else.
        """
        chosen = sources or (Source(world=self.study.worlds[0].name, format=_format_of(recipe)),)
        found = []
        for source in chosen:
            own = self.settings.data
            if own and source.format not in (CAPTIONS, "text"):
                raise ConfigError(
                    f"--data holds images with captions, and {recipe} of this study reads "
                    f"{source.format}: it can only run on the built-in scenes"
                )
            read = own or (format_source(self.world_files(source.world), source.format, "train"),)
            found += [
                replace(
                    one,
                    kind=source.kind or one.kind,
                    ratio=source.ratio if source.ratio is not None else one.ratio,
                    name=source.name or one.name,
                )
                for one in read
            ]
        return tuple(found)

    def held_out(self, score: Score, split: str | None = None) -> DataSourceConfig:
        """Return what models are scored on; of another split than the score's where one is named.

        Raises:
            ConfigError: Own data stands in for captions alone, and the score reads something else.
        """
        kind = score_format(score)
        if self.settings.data:
            if kind != CAPTIONS:
                raise ConfigError(
                    f"--data holds images with captions, and the score {score.name} of this study "
                    f"reads {kind}: it can only be had on the built-in scenes"
                )
            return self.settings.held_out[0]
        return format_source(self.world_files(score.world), kind, split or score.split)

    def formats(self, world: World) -> tuple[str, ...]:
        """Return the formats of a world that runs and scores read."""
        study, first = self.study, self.study.worlds[0].name
        found = [CAPTIONS]
        found += [s.format for s in study.all_sources() if s.world == world.name]
        found += [score_format(s) for s in study.scores if s.world == world.name]
        recipes = [] if study.base.sources else [study.base.recipe]
        recipes += [v.recipe for v in study.variants if v.recipe is not None and not v.sources]
        recipes += [s.recipe for s in (*study.stages, *study.after) if not s.sources]
        for recipe in recipes if world.name == first else []:
            families = {(v.recipe or study.base.recipe).partition(".")[0] for v in study.variants}
            found += [_format_of(recipe.replace("{family}", family)) for family in families]
        return tuple(dict.fromkeys(found))

    def write_worlds(self, console: Console) -> None:
        """Write the scenes that are not there yet.

        Raises:
            ConfigError: There are others.
        """
        for world in () if self.settings.data else self.study.worlds:
            config = SceneConfig(seed=world.seed)
            if world.objects:
                config = replace(config, object_count_weights=world.objects)
            files, formats = self.world_files(world.name), self.formats(world)
            if files.summary.is_file():
                _check_world(files, world, config, formats)
                continue
            console.print(f"writing {world.train:,} scenes ({world.name})", highlight=False)
            write_scenes(
                files.root,
                world.train,
                num_val=world.val,
                num_test=world.test,
                num_compositional=world.test,
                config=config,
                formats=formats,
                captions_per_image=world.captions_per_image,
                images_per_statement=1,  # with fewer statements, a model learns them by heart
                num_workers=2 if world.train > 1000 else 1,
            )

    def train_tokenizer(self) -> None:
        """Train the tokenizer that all runs share on the texts of all, unless it is there."""
        if (self.tokenizer / "tokenizer.json").is_file():
            return
        study = self.study
        runs = [self.whole_run(variant, 0) for variant in study.variants]
        runs += [self.stage_run(stage, 0).config for stage in study.stages]
        runs += [self.after_run(s, v, 0).config for s in study.after for v in study.variants]
        sources = dict.fromkeys(
            DataSourceConfig(
                path=s.path,
                reader=s.reader,
                image_root=s.image_root,
                split=s.split,
                annotations=s.annotations,
                index=s.index,
            )
            for run in runs
            for s in run.data.train
        )
        records = JoinedRecords([read_records(source).records for source in sources])
        first = runs[0]
        config = replace(
            first,
            tokenizer=replace(first.tokenizer, path=None),
            model=replace(first.model, init_from=None, init_text_from=None),
        )
        prepare_tokenizer(config, records).save(self.tokenizer)


def open_plan(study: Study, settings: Settings, folder: Path) -> Plan:
    """Return the plan of a study in a folder."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Plan(study, settings, folder.resolve(), resolve_precision("auto", device))


def score_format(score: Score) -> str:
    """Return the format of scenes that a score reads."""
    if score.format is not None:
        return score.format
    if score.task == PROBE:
        return "classes"
    from triptych.tasks.registry import TASKS

    configs = [config for config, _ in ways_to_score(score.task)]
    needs = [spec.needs for spec in TASKS.values() if spec.config in configs]
    found = [FORMATS_OF_NEEDS[need] for need in needs if need in FORMATS_OF_NEEDS]
    if not found:
        raise ConfigError(f"scores.{score.name}: name the `format` that {score.task} is scored on")
    return found[0]


def _format_of(recipe: str) -> str:
    """Return the format of scenes that a recipe reads."""
    needs = recipe_needs().get(recipe, ())
    if needs not in FORMATS_OF_NEEDS:
        raise ConfigError(f"the built-in scenes have no data for {recipe}: choose another recipe")
    return FORMATS_OF_NEEDS[needs]


def _check_world(
    files: SceneFiles, world: World, config: SceneConfig, formats: Sequence[str]
) -> None:
    """Raise where a folder holds other scenes than a study asks for."""
    found = read_json_object(files.summary)
    has = (found["config"]["seed"], found["counts"].get("train"), found["counts"].get("test", 0))
    missing = [name for name in formats if name not in found["formats"]]
    same = list(found["config"]["object_count_weights"]) == list(config.object_count_weights)
    if has != (world.seed, world.train, world.test) or missing or not same:
        why = f"lack {', '.join(missing)}" if missing else "are of another seed, number or kind"
        raise ConfigError(
            f"the scenes in {files.root} {why}: choose another folder with --out, or delete "
            f"{files.root.parent.parent}"
        )
