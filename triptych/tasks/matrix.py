"""Which family of models can do which task: read from the specs of tasks and from the models.

A row is a task and one of its scores, on images or on clips; a column is a family. Nothing is
listed by hand: a cell is possible where a registered task trains the family's model
(`TrainedModels`), and where it is not, the reason is what the model lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from triptych.models.families import FAMILIES, create_model
from triptych.tasks.registry import TASKS, find_evaluation
from triptych.tasks.spec import TaskRecipe, TaskSpec, TrainedModels


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What a family of models can do of one task.

    Attributes:
        task: The word in `trained_for` of a model that was trained for it.
        evaluation: What `triptych eval --task` calls its score.
        clips: Whether records show clips instead of images.
        family: Key of the family.
        title: The family, as its paper writes it.
        recipes: What fine-tunes the family's models for it: its own recipes, else those for any.
        zero_shot: Recipes whose models are scored without fine-tuning for it: of pre-training and,
            on clips, those that fine-tune on images.
        needs: What a record must have for the first recipe; "a|b" where either will do.
        scored_on: What a record must have to be scored.
        serves: Methods of `triptych.load(...)` that the first recipe's model then has.
        reason: Why it is impossible; None where it is not.
    """

    task: str
    evaluation: str
    clips: bool
    family: str
    title: str
    recipes: tuple[str, ...]
    zero_shot: tuple[str, ...]
    needs: tuple[str, ...]
    scored_on: tuple[str, ...]
    serves: tuple[str, ...]
    reason: str | None

    @property
    def is_possible(self) -> bool:
        """Whether a recipe leads to a score."""
        return self.reason is None

    @property
    def name(self) -> str:
        """The task in words."""
        return self.task.replace("_", " ") + (" on clips" if self.clips else "")


def task_matrix() -> list[Cell]:
    """Return every cell, row by row in the order of registration, families in theirs.

    Families are those that read texts; a family's model is its first variant, without weights.
    """
    models = _models()
    return [
        _cell(task, evaluation, clips, family, model)
        for task, evaluation, clips in _rows()
        for family, model in models.items()
    ]


def possible_cells() -> list[Cell]:
    """Return the cells that a recipe reaches."""
    return [cell for cell in task_matrix() if cell.is_possible]


def _rows() -> list[tuple[str, str, bool]]:
    """Return tasks with their scores, and what only pre-training is scored on."""
    tuned = [
        (spec.trained_for, name)
        for spec in TASKS.values()
        if not spec.pretrains
        for name in spec.evaluation_names()
    ]
    known = {name for _, name in tuned}
    rows = tuned + [
        (spec.trained_for, evaluation.name)
        for spec in TASKS.values()
        if spec.pretrains
        for evaluation in spec.evaluations
        if evaluation.name not in known
    ]
    return [
        (task, name, clips)
        for task, name in dict.fromkeys(rows)
        for clips in ((False, True) if find_evaluation(name).reads_clips else (False,))
    ]


def _cell(task: str, evaluation: str, clips: bool, family: str, model: Any) -> Cell:
    scored = [spec for spec in TASKS.values() if evaluation in spec.evaluation_names()]
    specs = [spec for spec in scored if spec.trained_for == task]
    found = [
        (recipe, spec)
        for spec in specs
        if not spec.pretrains and spec.models.refusal(model) is None
        for recipe in _recipes(spec, evaluation, family)
    ]
    found = [pair for pair in found if pair[0].family == family] or found
    zero_shot = [
        recipe.name
        for spec in scored
        if spec.pretrains and spec.models.refusal(model) is None
        for recipe in spec.recipes
        if recipe.family in (family, None) and recipe.teaches is None
    ]
    if clips:
        zero_shot += [recipe.name for recipe, spec in found if not _trains_on_clips(spec)]
        found = [(recipe, spec) for recipe, spec in found if _trains_on_clips(spec)]
    needs = _fields((found[0][0].needs or found[0][1].needs) if found else specs[0].needs, clips)
    return Cell(
        task=task,
        evaluation=evaluation,
        clips=clips,
        family=family,
        title=FAMILIES.get(family).title,
        recipes=tuple(dict.fromkeys(recipe.name for recipe, _ in found)),
        zero_shot=tuple(dict.fromkeys(zero_shot)),
        needs=needs,
        scored_on=_scored_on(needs, evaluation),
        serves=found[0][1].serves if found else (),
        reason=None if found or zero_shot else _reason(specs, model),
    )


def _reason(specs: Sequence[TaskSpec[Any]], model: Any) -> str:
    """Return why none of some tasks trains a model: what it lacks, else which families they are."""
    lacking = [spec.models.refusal(model) for spec in specs if not spec.models.families]
    families = [family for spec in specs for family in spec.models.families]
    named = TrainedModels(families=tuple(dict.fromkeys(families))).refusal(model)
    return next(filter(None, [*lacking, named]), "no recipe trains it")


def _trains_on_clips(spec: TaskSpec[Any]) -> bool:
    return any("video" in need.split("|") for need in spec.needs)


def _fields(needs: tuple[str, ...], clips: bool) -> tuple[str, ...]:
    """Return needs with either the image or the clip, where a record may have both."""
    both = {"image|video": "video" if clips else "image"}
    return tuple((both | {"image": "video"} if clips else both).get(need, need) for need in needs)


def _scored_on(needs: tuple[str, ...], evaluation: str) -> tuple[str, ...]:
    """Return what a record must have to be scored: as in training, or an image with the truth."""
    field = find_evaluation(evaluation).field
    return needs if any(field in need.split("|") for need in needs) else ("image", field)


def _recipes(spec: TaskSpec[Any], evaluation: str, family: str) -> Sequence[TaskRecipe]:
    """Return the recipes that lead to a score: those of the family or of any, else all."""
    names = spec.evaluation_names()
    taught = [
        recipe
        for recipe in spec.recipes
        if evaluation in (recipe.teaches or names) or not set(recipe.teaches or ()) & set(names)
    ]
    return [r for r in taught if r.family in (family, None)] or taught


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage of pre-training and what begins it in each family.

    Attributes:
        trained_for: The word in `trained_for` of a model that has it behind it.
        needs: What a record must have; "a|b" where either will do.
        recipes: By key of the family; none where a family has no such stage of its own.
    """

    trained_for: str
    needs: tuple[str, ...]
    recipes: Mapping[str, tuple[str, ...]]


def pretraining_stages() -> list[Stage]:
    """Return the stages of pre-training, those on pairs first."""
    models = _models()
    found: dict[str, Stage] = {}
    specs = [spec for spec in TASKS.values() if spec.pretrains]
    for spec in sorted(specs, key=lambda spec: not spec.also_scored):
        recipes = {
            family: tuple(r.name for r in spec.recipes if r.family in (family, None))
            for family, model in models.items()
            if spec.models.refusal(model) is None
        }
        known = found.get(spec.trained_for)
        if known is not None:
            recipes = {
                family: known.recipes.get(family, ()) + recipes.get(family, ()) for family in models
            }
        if any(recipes.values()):
            needs = spec.needs if known is None else known.needs
            found[spec.trained_for] = Stage(
                trained_for=spec.trained_for, needs=needs, recipes=recipes
            )
    return list(found.values())


def matrix_rows(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Return the cells of each row."""
    rows: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.name, cell.evaluation), []).append(cell)
    return list(rows.values())


def _models() -> dict[str, Any]:
    """Return a model of each family that reads texts, without weights."""
    found = {}
    for name in FAMILIES:
        if FAMILIES.get(name).reads_text:
            with torch.device("meta"):
                found[name] = create_model(next(iter(FAMILIES.get(name).variants)))
    return found
