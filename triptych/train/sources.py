"""Batches from several sources: the objectives of each, and the steps it has had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from triptych.core.errors import CheckpointError, ConfigError, nearest
from triptych.core.outputs import BatchKind
from triptych.train.schedule import ObjectiveSchedules
from triptych.train.task import MixedTask, Task

SOURCE = "source"
"""Key of a batch: () int64, the number of its source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSource:
    """A source of batches.

    Attributes:
        name: Prefix of its curves and its counter in the log.
        kind: Which of the task's `batch_kinds` its batches are; None for a task of one kind.
    """

    name: str
    kind: str | None = None


class BatchSources:
    """The sources of a run: the kind of each one's batches, and its number of steps.

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
        self._only_kind = BatchKind(task.batch_keys, task.objective_names)
        self._kinds = dict(task.batch_kinds) if isinstance(task, MixedTask) else {}
        if self._kinds and not self.sources:
            raise ConfigError(
                f"the task takes batches of several kinds ({', '.join(self._kinds)}): "
                "train it on sources that each name their kind"
            )
        for source in self.sources:
            self._check_kind(source)

    def check(self, objectives: ObjectiveSchedules, max_steps: int) -> None:
        """Raise a ConfigError if a step would have no loss, whichever source it draws."""
        if not self.sources:
            objectives.check(max_steps)
        for name in {source.kind: source.name for source in self.sources}.values():
            kind = self.kind(self._number(name))
            objectives.check(max_steps, among=kind.objectives, what=f" on source {name!r}")

    def kind(self, number: int | None) -> BatchKind:
        """Return the keys and objectives of a source's batches."""
        name = None if number is None else self.sources[number].kind
        return self._only_kind if name is None else self._kinds[name]

    def take(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int | None]:
        """Return a batch without the number of its source, and the number.

        Raises:
            ConfigError: There are sources, and the batch does not name its own.
        """
        found = dict(batch)
        number = found.pop(SOURCE, None)
        if not self.sources:
            return found, None
        if number is None or not 0 <= int(number) < len(self.sources):
            raise ConfigError(
                f"a batch of {len(self.sources)} sources has {SOURCE!r} = {number}: "
                "use the loader built for these sources"
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
            CheckpointError: The checkpoint belongs to a run on other sources.
        """
        names = [source.name for source in self.sources]
        if list(state) != names:
            raise CheckpointError(
                f"the checkpoint belongs to a run on the sources {list(state)}, not {names}: "
                "resume with the configuration that the run began with"
            )
        self.steps = [int(state[name]) for name in names]

    def _number(self, name: str) -> int:
        return [source.name for source in self.sources].index(name)

    def _check_kind(self, source: BatchSource) -> None:
        if source.kind is None and not self._kinds:
            return
        if source.kind not in self._kinds:
            known = ", ".join(self._kinds) or "none: it takes a single kind"
            raise ConfigError(
                f"source {source.name!r} has kind {source.kind!r}"
                f"{nearest(str(source.kind), self._kinds)} (the task's kinds: {known})"
            )
