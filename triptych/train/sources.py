"""Batches of several sources: what each can be trained on, and how many steps each has had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from triptych.core.errors import CheckpointError, ConfigError, nearest
from triptych.core.outputs import BatchKind
from triptych.train.task import MixedTask, Task
from triptych.train.weights import ObjectiveSchedules

SOURCE = "source"
"""Key of a batch: () int64, the number of its source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSource:
    """One source of batches.

    Attributes:
        name: What its curves and its counter are called in the log.
        kind: Which of the task's `batch_kinds` its batches are; None for a task of one kind.
    """

    name: str
    kind: str | None = None


class SourceBook:
    """Knows the kind of each source's batches and counts its steps.

    Args:
        task: What is trained.
        sources: In the order of the numbers that batches carry; empty where they carry none.

    Raises:
        ConfigError: The task takes several kinds and a source is none of them, or the other way
            round.
    """

    def __init__(self, task: Task, sources: Sequence[BatchSource]) -> None:
        self.sources = tuple(sources)
        self.steps = [0] * len(self.sources)
        self._whole = BatchKind(task.batch_keys, task.objective_names)
        self._kinds = dict(task.batch_kinds) if isinstance(task, MixedTask) else {}
        if self._kinds and not self.sources:
            raise ConfigError(
                f"the task takes batches of several kinds ({', '.join(self._kinds)}): "
                "train it on sources that say which kind they are"
            )
        for source in self.sources:
            self._check_kind(source)

    def check(self, objectives: ObjectiveSchedules, max_steps: int) -> None:
        """Raise a ConfigError if a step of the run would have no loss, whatever it draws."""
        if not self.sources:
            objectives.check(max_steps)
        for name in {source.kind: source.name for source in self.sources}.values():
            kind = self.kind(self._number(name))
            objectives.check(max_steps, among=kind.objectives, what=f" on source {name!r}")

    def kind(self, number: int | None) -> BatchKind:
        """Return what a source's batches hold and can be trained on."""
        name = None if number is None else self.sources[number].kind
        return self._whole if name is None else self._kinds[name]

    def take(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int | None]:
        """Return a batch without the number of its source, and the number.

        Raises:
            ConfigError: There are sources, and the batch does not say which it is of.
        """
        found = dict(batch)
        number = found.pop(SOURCE, None)
        if not self.sources:
            return found, None
        if number is None or not 0 <= int(number) < len(self.sources):
            raise ConfigError(
                f"a batch of {len(self.sources)} sources has {SOURCE!r} = {number}: "
                "use the loader that belongs to them"
            )
        return found, int(number)

    def count(self, number: int | None) -> None:
        """Count one step of a source."""
        if number is not None:
            self.steps[number] += 1

    def curves(self, number: int | None, losses: Mapping[str, float]) -> dict[str, float]:
        """Return a step's losses under the name of its source."""
        if number is None:
            return {}
        return {f"source/{self.sources[number].name}/{key}": v for key, v in losses.items()}

    def counters(self) -> dict[str, int]:
        """Return the steps that each source has had."""
        pairs = zip(self.sources, self.steps, strict=True)
        return {f"source/{source.name}/steps": steps for source, steps in pairs}

    def state(self) -> dict[str, Any]:
        """Return the counts, by name."""
        return {s.name: steps for s, steps in zip(self.sources, self.steps, strict=True)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned.

        Raises:
            CheckpointError: The checkpoint is of a run on other sources.
        """
        names = [source.name for source in self.sources]
        if list(state) != names:
            raise CheckpointError(
                f"the checkpoint is of a run on the sources {list(state)}, and these are {names}: "
                "resume with the configuration that the run began with"
            )
        self.steps = [int(state[name]) for name in names]

    def _number(self, name: str) -> int:
        return [source.name for source in self.sources].index(name)

    def _check_kind(self, source: BatchSource) -> None:
        if source.kind is None and not self._kinds:
            return
        if source.kind not in self._kinds:
            known = ", ".join(self._kinds) or "none: it takes one kind alone"
            raise ConfigError(
                f"source {source.name!r} has kind {source.kind!r}"
                f"{nearest(str(source.kind), self._kinds)} (the task's kinds: {known})"
            )
