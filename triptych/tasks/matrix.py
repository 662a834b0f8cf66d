"""Which family of models can do which task: read from the specs of tasks and from the models.

A row is a task and one of its scores, a column a family. Nothing is listed by hand: a cell is
possible where a registered task trains the family's model (`TrainedModels`), and where it is not,
the reason is the capability or the contract that the model lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from triptych.models.families import FAMILIES, create_model
from triptych.tasks.registry import TASKS, find_evaluation
from triptych.tasks.spec import TaskRecipe, TaskSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What a family of models can do of one task.

    Attributes:
        task: The word in `trained_for` of a model that was trained for it.
        evaluation: What `triptych eval --task` calls its score.
        family: Key of the family.
        title: The family, as its paper writes it.
        recipes: What fine-tunes the family's models for it: its own recipes, else those for any.
        zero_shot: Recipes of pre-training whose models are scored without fine-tuning.
        needs: What a record must have for the first recipe; "a|b" where either will do.
        scored_on: What a record must have to be scored.
        serves: Methods of `triptych.load(...)` that the first recipe's model then has.
        reason: Why it is impossible; None where it is not.
    """

    task: str
    evaluation: str
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


def task_matrix() -> list[Cell]:
    """Return every cell, row by row in the order of registration, families in theirs.

    Families are those that read texts; a family's model is its first variant, without weights.
    """
    models = _models()
    return [
        _cell(task, evaluation, family, model)
        for task, evaluation in _rows()
        for family, model in models.items()
    ]


def possible_cells() -> list[Cell]:
    """Return the cells that a recipe reaches."""
    return [cell for cell in task_matrix() if cell.is_possible]


def _rows() -> list[tuple[str, str]]:
    """Return tasks with their scores; pre-training is none, since each family has its own."""
    rows = [
        (spec.trained_for, name)
        for spec in TASKS.values()
        if not spec.pretrains
        for name in spec.evaluation_names()
    ]
    return list(dict.fromkeys(rows))


def _cell(task: str, evaluation: str, family: str, model: Any) -> Cell:
    specs = [
        spec
        for spec in TASKS.values()
        if not spec.pretrains and spec.trained_for == task and evaluation in spec.evaluation_names()
    ]
    fits = [spec for spec in specs if spec.models.refusal(model) is None]
    found = [(r, s) for s in fits for r in _recipes(s, evaluation, family)]
    found = [pair for pair in found if pair[0].family == family] or found
    zero_shot = tuple(
        recipe.name
        for spec in TASKS.values()
        if spec.pretrains and evaluation in spec.also_scored and spec.models.refusal(model) is None
        for recipe in spec.recipes
        if recipe.family in (family, None) and recipe.teaches is None
    )
    needs = (found[0][0].needs or found[0][1].needs) if found else specs[0].needs
    reason = None
    if not found and not zero_shot:
        refusals = [spec.models.refusal(model) for spec in specs]
        named = [refusal for refusal in refusals if refusal is not None]
        reason = named[0] if named else "no recipe trains it"
    return Cell(
        task=task,
        evaluation=evaluation,
        family=family,
        title=FAMILIES.get(family).title,
        recipes=tuple(dict.fromkeys(recipe.name for recipe, _ in found)),
        zero_shot=zero_shot,
        needs=needs,
        scored_on=_scored_on(needs, evaluation),
        serves=found[0][1].serves if found else (),
        reason=reason,
    )


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
        rows.setdefault((cell.task, cell.evaluation), []).append(cell)
    return list(rows.values())


def _models() -> dict[str, Any]:
    """Return a model of each family that reads texts, without weights."""
    found = {}
    for name in FAMILIES:
        if FAMILIES.get(name).reads_text:
            with torch.device("meta"):
                found[name] = create_model(next(iter(FAMILIES.get(name).variants)))
    return found
