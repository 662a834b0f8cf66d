"""What a study compares, as data: a YAML file of a user, or one of those in `studies/`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from triptych.core.config import check, from_dict, load_yaml
from triptych.core.errors import ConfigError, nearest
from triptych.core.reading import parse_yaml
from triptych.recipes.registry import RECIPES
from triptych.recipes.scales import check_scale
from triptych.scenes.layout import FORMATS
from triptych.tasks.registry import find_evaluation

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
"""Of what has a folder of its own."""

OWN_FIELDS = {
    "train.max_steps": "the budget, or `steps` of a stage, sets it",
    "train.seed": "--seeds sets it",
    "data.seed": "--seeds sets it",
    "data.train": "`sources` names the data",
    "data.val": "`scores` names the held-out data",
    "data.val_share": "`scores` names the held-out data",
    "tokenizer.path": "all variants share one tokenizer",
    "train.num_threads": "--num-threads sets it",
}
"""Fields that would make variants unequal, and what sets them."""

PROBE = "probe"
"""The score of a linear classifier on the frozen image encoder."""

STEP_TIME, PROCESSOR_TIME = "seconds_per_step", "processor_seconds_per_step"
STEP_FLOPS = "flops_per_sample"
COSTS = (STEP_TIME, PROCESSOR_TIME, STEP_FLOPS)
"""What a comparison may be about beside scores. Processor seconds, summed over threads, are those
of whole runs in one process that nothing interrupted; a busy machine changes them least."""

Direction = Literal["higher", "lower", "equal"]


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """A set of built-in scenes.

    Attributes:
        name: What sources and scores call it.
        train: Images to train on.
        test: Images of each of the splits test and compositional.
        val: Images of the split val.
        objects: Relative frequency of 1, 2, 3 ... objects an image; empty keeps the usual ones.
        seed: Seed of the scenes.
        captions_per_image: Captions of an image.
    """

    name: str = "scenes"
    train: int = 24_000
    test: int = 500
    val: int = 8
    objects: tuple[float, ...] = ()
    seed: int = 0
    captions_per_image: int = 1

    def __post_init__(self) -> None:
        """Reject names that are no folders, and empty worlds."""
        _check_name("worlds", self.name)
        check(self.train >= 1, f"worlds.{self.name}.train", self.train, "be at least 1")
        check(self.test >= 0, f"worlds.{self.name}.test", self.test, "be at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Training data of a run: a format of a world.

    Attributes:
        world: Which scenes.
        format: In which format: captions, text, vqa, refs, nlvr2, snli_ve, classes or masks.
        kind: Kind of its batches, for tasks that take several: pair, image or text.
        ratio: How often a step draws it, relative to the sum of all ratios.
        name: Its name in curves.
    """

    world: str = "scenes"
    format: str = "captions"
    kind: str | None = None
    ratio: float | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        """Reject formats that scenes do not have."""
        known = f"be one of {', '.join(FORMATS)}{nearest(self.format, FORMATS)}"
        check(self.format in FORMATS, "sources.format", self.format, known)


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A way to train.

    Attributes:
        name: Its name in tables, and of its folder.
        about: What it is, in a few words.
        recipe: Its recipe; None for that of the base.
        set: Fields of the run that differ from the base's, by dotted name, as the flags of
            `triptych train` without the dashes: "model.fusion", "weights.itm.start_step". A
            fraction such as 0.4 for a start_step or end_step is a share of the run, whatever its
            length. The value `{STAGE}` is the model folder of a stage.
        architecture: Fields of the model's own config that differ, such as "fusion_depth".
        without: Objectives that are not trained.
        sources: Its training data; empty for those of the base.
    """

    name: str
    about: str = ""
    recipe: str | None = None
    set: Mapping[str, Any] = field(default_factory=dict)
    architecture: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        """Reject names that are no folders, and fields that the study sets."""
        _check_name("variants", self.name)
        _check_set(self.set, f"variants.{self.name}.set")
        _check_recipe(self.recipe, f"variants.{self.name}.recipe")


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """What all variants have unless they say otherwise.

    Attributes:
        recipe: The recipe.
        set: Fields of the run, as for a variant.
        architecture: Fields of the model's own config.
        without: Objectives that are not trained.
        sources: Training data; empty for the format that the recipe reads.
    """

    recipe: str
    set: Mapping[str, Any] = field(default_factory=dict)
    architecture: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        """Reject unknown recipes, and fields that the study sets."""
        _check_set(self.set, "base.set")
        _check_recipe(self.recipe, "base.recipe")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A run before or after those that are compared, the same for all variants.

    Attributes:
        name: Of its folder, and in `{STAGE}` or `after`.
        recipe: The recipe; of what comes after, `{family}.vqa` takes each variant's family.
        steps: Optimizer steps; None for the recipe's.
        set: Fields of the run, as for a variant.
        architecture: Fields of the model's own config.
        sources: Training data; empty for the format that the recipe reads.
        per_seed: Of what comes before: whether each seed has its own, instead of all sharing one.
    """

    name: str
    recipe: str
    steps: int | None = None
    set: Mapping[str, Any] = field(default_factory=dict)
    architecture: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    per_seed: bool = False

    def __post_init__(self) -> None:
        """Reject names that are no folders, and fields that the study sets."""
        _check_name("stages", self.name)
        _check_set(self.set, f"stages.{self.name}.set")
        if "{family}" not in self.recipe:
            _check_recipe(self.recipe, f"stages.{self.name}.recipe")
        steps = self.steps
        check(steps is None or steps >= 1, f"stages.{self.name}.steps", steps, "be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A number that every model gets on held-out data.

    Attributes:
        name: Its name in tables.
        task: What `triptych eval --task` calls it; or `probe`, a linear classifier on the frozen
            image encoder, fitted on the split train and its penalty chosen on val.
        metrics: Names of the numbers that `triptych eval` gives, whose mean it is; empty takes the
            first one.
        world: Which scenes.
        format: In which format; None for the one that the task reads.
        split: Which part of them: test, val or compositional.
        of: The stage in `after` whose model is scored; None for the variant's own.
        limit: Only the first so many records.
        rerank_top_k: Retrieval: candidates that ITM ranks; 0 leaves it to the embeddings.
        label_pattern: Of `probe`: a regular expression whose first group in a label is the class.
    """

    name: str
    task: str
    metrics: tuple[str, ...] = ()
    world: str = "scenes"
    format: str | None = None
    split: Literal["test", "val", "compositional"] = "test"
    of: str | None = None
    limit: int | None = None
    rerank_top_k: int = 0
    label_pattern: str | None = None

    def __post_init__(self) -> None:
        """Reject tasks and formats that do not exist."""
        _check_name("scores", self.name)
        check(self.name not in COSTS, "scores.name", self.name, "not be the name of a cost")
        if self.task != PROBE:
            find_evaluation(self.task)
        known = self.format is None or self.format in FORMATS
        check(known, f"scores.{self.name}.format", self.format, f"be one of {', '.join(FORMATS)}")
        check(self.rerank_top_k >= 0, "rerank_top_k", self.rerank_top_k, "be at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a paper found.

    Attributes:
        says: In words, with its numbers.
        source: Paper, table or figure.
        predicts: Whether the first variant is then higher, lower, or equal to the second.
        margin: Of "equal": the largest difference that still counts as none, in the score's unit.
    """

    says: str
    source: str
    predicts: Direction
    margin: float = 0.0

    def __post_init__(self) -> None:
        """Reject an equality that nothing could show."""
        if self.predicts == "equal":
            check(self.margin > 0, "paper.margin", self.margin, "be above 0 for `equal`")


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two variants and a score.

    Attributes:
        first: A variant.
        second: Another one; the difference is first minus second.
        score: The name of a score, or of a cost: seconds_per_step, processor_seconds_per_step,
            flops_per_sample.
        paper: What the paper found; None where no paper says anything.
    """

    first: str
    second: str
    score: str
    paper: Finding | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What every variant may spend: one of these.

    Attributes:
        samples: Training samples, each as often as it is read.
        minutes: Minutes of training, by measured steps.
        flops: Operations of training, counted.
    """

    samples: float | None = None
    minutes: float | None = None
    flops: float | None = None

    def __post_init__(self) -> None:
        """Reject none, several, and nothing."""
        given = [name for name in self.__slots__ if getattr(self, name) is not None]
        check(len(given) == 1, "budget", given, "name one of samples, minutes, flops")
        check(0 < self.amount < float("inf"), f"budget.{self.unit}", self.amount, "be above 0")

    @property
    def unit(self) -> str:
        """Return samples, minutes or flops."""
        return next(name for name in self.__slots__ if getattr(self, name) is not None)

    @property
    def amount(self) -> float:
        """Return how much of it."""
        return float(getattr(self, self.unit))


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """Variants of a run that are compared.

    Attributes:
        title: In a few words.
        question: What it answers.
        base: What all variants have.
        variants: At least two.
        scores: What every model is scored by.
        comparisons: Pairs of variants; the first is the study's main comparison.
        budget: What each variant may spend.
        scale: Scale of all recipes: smoke, tiny, small, base or large.
        worlds: The built-in scenes that sources and scores name.
        stages: Models that are trained first, in order.
        after: Fine-tunings of every variant's model, each from that model.
        notes: What a reader must know, a sentence each.
    """

    title: str
    question: str = ""
    base: Base
    variants: tuple[Variant, ...]
    scores: tuple[Score, ...]
    comparisons: tuple[Comparison, ...]
    budget: Budget
    scale: str = "tiny"
    worlds: tuple[World, ...] = field(default_factory=lambda: (World(),))
    stages: tuple[Stage, ...] = ()
    after: tuple[Stage, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Reject names that are there twice or not at all."""
        check_scale(self.scale)
        names = [variant.name for variant in self.variants]
        check(len(names) >= 2, "variants", names, "be two or more")
        for what in ("variants", "scores", "worlds", "stages", "after"):
            listed = [item.name for item in getattr(self, what)]
            check(len(set(listed)) == len(listed), what, listed, "have different names")
        check(bool(self.scores), "scores", [], "name at least one")
        check(bool(self.comparisons), "comparisons", [], "name at least one; the first is the main")
        scores = [*(score.name for score in self.scores), *COSTS]
        worlds = [world.name for world in self.worlds]
        for number, pair in enumerate(self.comparisons):
            where = f"comparisons[{number}]"
            _check_known(f"{where}.first", pair.first, names)
            _check_known(f"{where}.second", pair.second, names)
            _check_known(f"{where}.score", pair.score, scores)
            check(pair.first != pair.second, f"{where}.second", pair.second, "differ from first")
        for score in self.scores:
            where = f"scores.{score.name}"
            _check_known(f"{where}.world", score.world, worlds)
            if score.of is not None:
                _check_known(f"{where}.of", score.of, [stage.name for stage in self.after])
        for source in self.all_sources():
            _check_known("sources.world", source.world, worlds)

    def all_sources(self) -> list[Source]:
        """Return every source that a run names."""
        parts: Sequence[Base | Variant | Stage] = (
            self.base,
            *self.variants,
            *self.stages,
            *self.after,
        )
        return [source for part in parts for source in part.sources]

    def variant(self, name: str) -> Variant:
        """Return a variant by its name."""
        return next(variant for variant in self.variants if variant.name == name)

    def world(self, name: str) -> World:
        """Return a world by its name."""
        return next(world for world in self.worlds if world.name == name)


def built_in_studies() -> dict[str, str]:
    """Return the YAML text of every built-in study by its name."""
    folder = files("triptych.lab") / "studies"
    texts = {f.name: f for f in folder.iterdir() if f.name.endswith(".yaml")}
    return {
        name.removesuffix(".yaml"): texts[name].read_text(encoding="utf-8")
        for name in sorted(texts)
    }


def load_study(name: str) -> Study:
    """Return a built-in study by its name, or that of a YAML file.

    Raises:
        ConfigError: There is none, or it does not fit; the message says what and where.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return load_yaml(Study, Path(name))
    known = built_in_studies()
    if name not in known:
        raise ConfigError(
            f"there is no study {name!r}{nearest(name, known)} (known: {', '.join(known)}; a file "
            "of your own ends in .yaml)"
        )
    return from_dict(Study, parse_yaml(known[name]))


def _check_name(where: str, name: str) -> None:
    must = "be letters, digits, dots, dashes and underscores, as it names a folder"
    check(NAME.fullmatch(name) is not None, f"{where}.name", name, must)


def _check_known(where: str, name: str, known: Sequence[str]) -> None:
    check(name in known, where, name, f"be one of {', '.join(known)}{nearest(name, known)}")


def _check_recipe(name: str | None, where: str) -> None:
    if name is not None and name not in RECIPES:
        raise ConfigError(
            f"{where} = {name!r}: there is no such recipe{nearest(name, RECIPES)} "
            f"(known: {', '.join(RECIPES)})"
        )


def _check_set(fields: Mapping[str, Any], where: str) -> None:
    for name in fields:
        for own, why in OWN_FIELDS.items():
            if name == own or str(name).startswith(f"{own}."):
                raise ConfigError(f"{where}.{name}: a study does not set {own}, since {why}")
