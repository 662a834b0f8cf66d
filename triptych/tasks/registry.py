"""All tasks, and what is looked up about them.

A new task is one file with a `TaskSpec` and one line in `BUILT_IN`; a package of your own calls
`register_task`. Training, evaluation, serving and the command line then know it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from triptych.core.config import from_dict, kind_of, kinds_of
from triptych.core.errors import ConfigError, nearest
from triptych.data.collate import AnyCollator, PretrainingTextConfig
from triptych.data.records import Record
from triptych.models.families import FAMILIES, family_of
from triptych.tasks.finetuning import (
    captioning,
    flava_retrieval,
    grounding,
    image_classification,
    image_text_classification,
    nlvr2,
    retrieval,
    scst,
    segmentation,
    text_classification,
    vqa,
)
from triptych.tasks.pretraining import dino, dvae, flava, flava_stages, mplug, vlmo, vlmo_stages
from triptych.tasks.spec import (
    CONFIGS,
    CollatorInputs,
    Evaluation,
    PatchView,
    TaskConfig,
    TaskRecipe,
    TaskSpec,
    TextLengths,
)
from triptych.text import Tokenizer
from triptych.train.task import Task

TASKS: dict[str, TaskSpec[Any]] = {}
"""By the `kind` of the config."""

BUILT_IN: tuple[TaskSpec[Any], ...] = (
    mplug.SPEC,
    vqa.SPEC,
    grounding.SPEC,
    nlvr2.SPEC,
    image_text_classification.PAIRS_SPEC,
    text_classification.SPEC,
    segmentation.SPEC,
    image_classification.SPEC,
    dvae.SPEC,
    flava_stages.TEXT_SPEC,
    captioning.SPEC,
    scst.SPEC,
    retrieval.SPEC,
    retrieval.VLMO_SPEC,
    flava_retrieval.SPEC,
    image_text_classification.ANSWERS_SPEC,
    vlmo_stages.VISION_SPEC,
    vlmo_stages.LANGUAGE_SPEC,
    vlmo.SPEC,
    flava_stages.IMAGE_SPEC,
    flava.SPEC,
    dino.SPEC,
)
"""`triptych init` prefers the first whose default recipe fits the data."""


def register_task(spec: TaskSpec[Any]) -> None:
    """Make a task known.

    Raises:
        ConfigError: Its kind, or the name of one of its evaluations, is taken.
    """
    name = kind_of(spec.config)
    kinds = kinds_of(spec.config)
    for kind in kinds:
        if kind in CONFIGS:
            raise ConfigError(f"task {kind!r} is registered twice")
    for evaluation in spec.evaluations:
        known = evaluations().get(evaluation.name)
        if known is not None and known.procedure != evaluation.procedure:
            raise ConfigError(f"evaluation {evaluation.name!r} is known as another procedure")
    TASKS[name] = spec
    CONFIGS.update(dict.fromkeys(kinds, spec.config))


def register_task_recipe(config: type[TaskConfig], recipe: TaskRecipe) -> None:
    """Add a recipe to a task that is registered already, such as that of a new family."""
    spec = TASKS[kind_of(config)]
    TASKS[kind_of(config)] = replace(spec, recipes=(*spec.recipes, recipe))


def task_spec(config: TaskConfig) -> TaskSpec[Any]:
    """Return the spec of a task's settings."""
    return TASKS[kind_of(type(config))]


def stored_task_config(stored: object) -> TaskConfig | None:
    """Return the settings that a model folder stores; None if they are of no task that is known.

    Raises:
        ConfigError: A field is unknown, or a value is out of range.
    """
    kind = stored.get("kind") if isinstance(stored, Mapping) else None
    if not isinstance(stored, Mapping) or not isinstance(kind, str) or kind not in CONFIGS:
        return None
    plain = {name: value for name, value in stored.items() if name != "kind"}
    return from_dict(CONFIGS[kind], plain, "task")


def build_task(
    config: TaskConfig, model: Any, tokenizer: Tokenizer, records: Iterable[Record] = ()
) -> Task:
    """Bind a model to a task.

    Args:
        config: The task's settings.
        model: What it trains or uses.
        tokenizer: The model's tokenizer.
        records: The training data.

    Raises:
        DataError: The tokenizer or the records lack what the task needs.
    """
    return task_spec(config).build(config, model, tokenizer, records)


def build_collator(
    config: TaskConfig,
    tokenizer: Tokenizer,
    captions: PretrainingTextConfig,
    lengths: TextLengths,
    *,
    train: bool,
    kind: str | None = None,
    images: PatchView | None = None,
) -> AnyCollator[Any]:
    """Build what turns records into the batches of a task; see `CollatorInputs`."""
    inputs = CollatorInputs(
        tokenizer=tokenizer,
        captions=captions,
        lengths=lengths,
        train=train,
        kind=kind,
        images=images,
    )
    return task_spec(config).collator(config, inputs)


def complete_task(config: TaskConfig, records: Sequence[Record]) -> TaskConfig:
    """Return a task's settings with what comes from the training data, such as the classes.

    Raises:
        DataError: The data lacks it.
    """
    complete = task_spec(config).complete
    return config if complete is None else complete(config, records)


def check_model(task: TaskConfig, model: Any, recipe: str, named: str) -> None:
    """Raise where a task cannot train a model.

    Args:
        task: The task's settings.
        model: The model that it was given.
        recipe: The recipe, for the message.
        named: Where the model came from, for the message.

    Raises:
        ConfigError: The model is of another family, or lacks a capability.
    """
    models = task_spec(task).models
    reason = models.refusal(model)
    if reason is not None:
        said = "" if models.families else f"{reason}; "
        raise ConfigError(
            f"{recipe} trains {models.words()}, and {named} is of "
            f"{family_of(model.config).title}: name another model there, or take another recipe "
            f"({said}`triptych tasks` lists what trains which model)"
        )


def trained_for_words() -> list[str]:
    """Return every word that `trained_for` of a model folder may have, in order."""
    return list(dict.fromkeys(spec.trained_for for spec in TASKS.values()))


def evaluations() -> dict[str, Evaluation[Any]]:
    """Return how tasks are scored, by name."""
    found: dict[str, Evaluation[Any]] = {}
    for spec in TASKS.values():
        for evaluation in spec.evaluations:
            found.setdefault(evaluation.name, evaluation)
    return found


def find_evaluation(name: str) -> Evaluation[Any]:
    """Return how tasks are scored under a name.

    Raises:
        ConfigError: No task is scored under this name; the message names the nearest.
    """
    known = evaluations()
    if name not in known:
        raise ConfigError(
            f"unknown task {name!r}{nearest(name, known)} (known: {', '.join(known)})"
        )
    return known[name]


def evaluation_of(config: TaskConfig, name: str) -> Evaluation[Any]:
    """Return how a task is scored under a name."""
    return next(e for e in task_spec(config).evaluations if e.name == name)


def ways_to_score(name: str) -> list[tuple[type[TaskConfig], Evaluation[Any]]]:
    """Return the evaluations of a name with the settings each may run on, the usual ones first."""
    return [
        (spec.config, evaluation)
        for spec in TASKS.values()
        for evaluation in spec.evaluations
        if evaluation.name == name
    ]


def evaluated_configs(name: str) -> list[type[TaskConfig]]:
    """Return the settings that an evaluation may run on, the usual ones first."""
    return [config for config, _ in ways_to_score(name)]


def teaching_words(use: str) -> list[str]:
    """Return the words in `trained_for` of models that can be asked or scored.

    Args:
        use: A method of `serving/engine.py`, or the name of an evaluation.
    """
    return list(dict.fromkeys(s.trained_for for s in TASKS.values() if use in s.uses()))


def needed_capabilities(use: str) -> frozenset[str]:
    """Return the capabilities that every task which teaches a method or an evaluation needs."""
    needed = [
        frozenset(spec.models.capabilities)
        for spec in TASKS.values()
        if use in spec.uses() and not spec.pretrains
    ]
    return frozenset.intersection(*needed) if needed else frozenset()


def recipe_that_teaches(use: str, model: Any) -> str | None:
    """Return the recipe that teaches a model a method or an evaluation; None if none does.

    A recipe of the model's own family comes first, and fine-tuning before pre-training.
    """
    family = kind_of(type(model.config))
    specs = sorted(
        (spec for spec in TASKS.values() if use in spec.uses()), key=lambda spec: spec.pretrains
    )
    taught = [
        (spec, recipe)
        for spec in specs
        for recipe in spec.recipes
        if recipe.teaches is None or use in recipe.teaches
    ]
    for fits in (
        [recipe for _, recipe in taught if recipe.family == family],
        [recipe for spec, recipe in taught if recipe.family is None and spec.models.accept(model)],
        [recipe for spec, recipe in taught if not spec.pretrains and spec.models.accept(model)],
    ):
        if fits:
            return fits[0].name
    return None


def models_to_take(use: str) -> str:
    """Return which families a method or an evaluation is taught to, and how such a model is made.

    For models that lack a capability, which no recipe can give them.
    """
    taught = [recipe for spec in TASKS.values() if use in spec.uses() for recipe in spec.recipes]
    families = list(dict.fromkeys(recipe.family for recipe in taught if recipe.family))
    starts = [
        f"`triptych train {recipe.name}`"
        for spec in TASKS.values()
        for recipe in spec.recipes
        if spec.pretrains and recipe.family in families and recipe.teaches is None
    ]
    titles = " or ".join(FAMILIES.get(name).title for name in families)
    if not families:
        return "no known family of models can"
    return f"take a model of {titles}" + (f", which {' or '.join(starts)} makes" if starts else "")


def missing_fields(needs: Sequence[str], record: Record) -> list[str]:
    """Return what a record lacks of what a task or recipe needs; "a|b" where either will do."""
    return [need for need in needs if not any(has_field(record, way) for way in need.split("|"))]


def has_field(record: Record, name: str) -> bool:
    """Return whether a record has a field."""
    return getattr(record, name) not in (None, ())


def needs_of(config: TaskConfig, recipe: str) -> tuple[str, ...]:
    """Return what a record must have for a run: what its recipe says, or its task."""
    spec = task_spec(config)
    own = [known.needs for known in spec.recipes if known.name == recipe and known.needs]
    return own[0] if own else spec.needs


def recipe_needs() -> dict[str, tuple[str, ...]]:
    """Return what a record must have for each recipe, those that `init` may choose first."""
    found = [(recipe, spec) for spec in TASKS.values() for recipe in spec.recipes]
    found.sort(key=lambda pair: not pair[0].default)
    return {recipe.name: recipe.needs or spec.needs for recipe, spec in found}


for _spec in BUILT_IN:
    register_task(_spec)
