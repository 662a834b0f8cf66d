"""Weights between a model before and after fine-tuning (WiSE-FT; Wortsman et al., 2022).

Fine-tuning improves a model on one task and harms others. A model whose weights lie on the line
between both often keeps most of the gain and loses less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from triptych.checkpoint.model_folder import (
    hash_model_folder,
    load_model_folder,
    save_model_folder,
)
from triptych.core.config import check
from triptych.core.errors import CheckpointError, ConfigError, nearest
from triptych.core.outputs import MetricValue
from triptych.data.manifest import FoundRecords, read_records
from triptych.data.source import DataSourceConfig
from triptych.serving.loading import LoadedModel, load_model
from triptych.tasks.registry import find_evaluation, stored_task_config, task_spec
from triptych.workflows.evaluate import evaluate_loaded

ALPHAS = tuple(number / 10 for number in range(11))


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """What the models between are scored on.

    Attributes:
        task: An evaluation, such as "vqa".
        source: Held-out data.
        metric: The score that counts; None is the first one.
        limit: Only the first so many records.
    """

    task: str
    source: DataSourceConfig
    metric: str | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """A model on the line.

    Attributes:
        alpha: Its place: 0 is the model before, 1 the one after fine-tuning.
        own: The score on the task of the fine-tuning.
        guard: The score on what should be preserved; None if nothing is guarded.
    """

    alpha: float
    own: MetricValue
    guard: MetricValue | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """The models on the line from one to another.

    Attributes:
        first: The model that was fine-tuned.
        last: What the fine-tuning left.
        starts: Weights of the first.
        ends: Weights of the last.
    """

    first: LoadedModel
    last: LoadedModel
    starts: Mapping[str, Tensor]
    ends: Mapping[str, Tensor]


def sweep(
    line: Line,
    own: HeldOut,
    guard: HeldOut | None = None,
    *,
    alphas: Sequence[float] = ALPHAS,
    on_point: Callable[[Point], None] | None = None,
) -> list[Point]:
    """Score models on the line between two.

    The task of the fine-tuning is scored with the settings and the classifier of the last model,
    the guard with those of the first. Weights that only one of them has are taken as they are.

    Args:
        line: What `open_line` returns.
        own: Data of the fine-tuned task.
        guard: Data of what should be preserved.
        alphas: Places on the line, 0 to 1.
        on_point: Called with each point as it is scored.

    Raises:
        ConfigError: No such task, place or metric.
        DataError: The data cannot be read or lack what a task needs.
    """
    for alpha in alphas:
        check(0 <= alpha <= 1, "alphas", alpha, "be from 0 to 1")
    for loaded, held in ((line.last, own), (line.first, guard)):
        if held is not None:
            find_evaluation(held.task)
            loaded.check_trained(held.task)
    own_records = read_records(own.source)
    guard_records = None if guard is None else read_records(guard.source)
    points = []
    for alpha in alphas:
        mixed = blend(line.starts, line.ends, alpha)
        line.last.model.load_state_dict({**line.ends, **mixed})
        scored = _score(line.last, own, own_records)
        kept = None
        if guard is not None:
            line.first.model.load_state_dict({**line.starts, **mixed})
            kept = _score(line.first, guard, guard_records)
        points.append(Point(alpha, scored, kept))
        if on_point is not None:
            on_point(points[-1])
    return points


def choose(points: Sequence[Point], tolerance: float) -> Point:
    """Return the point to keep.

    Without a guard it is the best on the own task. With one, it is the best by the guard among
    those that lose at most `tolerance` on the own task, relative to the last point.

    Args:
        points: Of `sweep`, in the order of alpha.
        tolerance: What the own task may lose, in its own unit (0.01 is one point of accuracy).
    """
    end = max(points, key=lambda point: point.alpha)
    if end.guard is None:
        return max(points, key=lambda point: (_gain(point.own), point.alpha))
    allowed = [p for p in points if _gain(p.own) >= _gain(end.own) - tolerance]

    def kept(point: Point) -> tuple[float, float]:
        assert point.guard is not None
        return _gain(point.guard), point.alpha

    return max(allowed, key=kept)


def write_blend(line: Line, alpha: float, out: Path, note: str) -> None:
    """Write the model folder of a point; it answers what the model after fine-tuning answers.

    Args:
        line: As for `sweep`.
        alpha: The place on the line.
        out: The new model folder.
        note: What its card says about it.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    found = load_model_folder(line.last.folder)
    save_model_folder(
        out,
        config=found.config,
        state_dict={**line.ends, **blend(line.starts, line.ends, alpha)},
        tokenizer_json=found.tokenizer_path.read_text(encoding="utf-8"),
        preprocess=found.preprocess,
        card=f"{found.card.rstrip()}\n\n## Interpolation\n\n{note}\n",
        head=found.head or None,
    )


def blend(
    starts: Mapping[str, Tensor], ends: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """Return (1 - alpha) of the first and alpha of the last of each weight that both have."""
    shared = starts.keys() & ends.keys()
    return {
        name: torch.lerp(starts[name].float(), ends[name].float(), alpha).to(ends[name].dtype)
        if ends[name].is_floating_point()
        else ends[name]
        for name in shared
    }


def open_line(before: str | Path, after: str | Path) -> Line:
    """Load both ends of a line.

    Args:
        before: The model folder that was fine-tuned.
        after: The model folder that the fine-tuning left.

    Raises:
        CheckpointError: A folder cannot be read, or the models do not fit together.
        ConfigError: They are the same model.
    """
    first, last = load_model(before), load_model(after)
    if hash_model_folder(first.folder) == hash_model_folder(last.folder):
        raise ConfigError(f"{before} and {after} are the same model: there is nothing between them")
    starts, ends = _weights(first), _weights(last)
    shared = starts.keys() & ends.keys()
    wrong = sorted(name for name in shared if starts[name].shape != ends[name].shape)
    if wrong or not shared:
        named = (
            f"{wrong[0]} is {tuple(starts[wrong[0]].shape)} and {tuple(ends[wrong[0]].shape)}"
            if wrong
            else "they have no weight in common"
        )
        raise CheckpointError(
            f"{before} and {after} are models of different shapes: {named}; fine-tune at the image "
            "size and with the tokenizer of the model before"
        )
    if first.tokenizer.to_json() != last.tokenizer.to_json():
        raise CheckpointError(f"{before} and {after} have different tokenizers")
    return Line(first, last, starts, ends)


def own_task(loaded: LoadedModel) -> str:
    """Return the evaluation of the task that a model was fine-tuned for.

    Raises:
        ConfigError: It stores no task that is scored.
    """
    stored = stored_task_config(loaded.settings.task)
    names = () if stored is None else task_spec(stored).evaluation_names()
    if not names:
        raise ConfigError(
            f"{loaded.folder} does not say which task it was fine-tuned for: name it with --task"
        )
    return names[0]


def _weights(loaded: LoadedModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in loaded.model.state_dict().items()}


def _score(loaded: LoadedModel, held: HeldOut, found: FoundRecords | None) -> MetricValue:
    values = evaluate_loaded(
        loaded, held.task, held.source, found=found, limit=held.limit, rerank_top_k=0
    )
    if held.metric is None:
        return values[0]
    named = {value.name: value for value in values}
    if held.metric not in named:
        raise ConfigError(
            f"metric = {held.metric!r}{nearest(held.metric, list(named))}: {held.task} gives "
            f"{', '.join(named)}"
        )
    return named[held.metric]


def _gain(value: MetricValue) -> float:
    return value.value if value.higher_is_better else -value.value
