"""`metrics.jsonl`: one JSON object per line, exact, and truncated when a run resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from triptych.core.files import write_atomic
from triptych.train.trackers import Tracker

WALL_CLOCK_KEYS = frozenset({"samples_per_s", "data_wait_share", "elapsed_s"})
"""Keys whose values differ between two otherwise equal runs."""


class MetricsLog:
    """Write metrics to `metrics.jsonl`, and pass them to trackers.

    Args:
        folder: The run folder.
        start_step: Steps done. Lines of later steps, which a killed run wrote after its last
            checkpoint, and an incomplete last line are dropped.
        trackers: Receive the same numbers; closed with the log.
        silent: Write nothing at all: for processes other than the main one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start_step: int = 0,
        trackers: Sequence[Tracker] = (),
        silent: bool = False,
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self._file: TextIO | None = None
        self._trackers = trackers
        if silent:
            return
        folder.mkdir(parents=True, exist_ok=True)
        _drop_lines_after(self.path, start_step)
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line `{"step": step, **values}`; floats read back equal."""
        if self._file:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        for tracker in self._trackers:
            tracker.log(step, values)

    def flush_to_disk(self) -> None:
        """Wait until all lines are on the disk; a checkpoint must not be ahead of its metrics."""
        if self._file:
            os.fsync(self._file.fileno())
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        """Close the files."""
        if self._file:
            self._file.close()
        for tracker in self._trackers:
            tracker.close()


class StepMeans:
    """Means of the numbers of several steps, which a checkpoint can store.

    An objective that was not active at a step does not count for that step.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Count one step's numbers."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def pop(self) -> dict[str, float]:
        """Return the means since the last call, and reset."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def state(self) -> dict[str, Any]:
        """Return the sums and counts, as JSON values."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl`; an incomplete last line is skipped."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _drop_lines_after(path: Path, step: int) -> None:
    lines = read_metrics(path)
    kept = [line for line in lines if line["step"] <= step]
    if path.exists():
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))
