"""Log a run's numbers: `metrics.jsonl`, exact and truncated when a run resumes, and trackers."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

from triptych.core.errors import CapabilityError, CheckpointError, ConfigError
from triptych.core.extras import import_extra
from triptych.core.files import write_atomic, write_json, writing

METRICS_FILE = "metrics.jsonl"

WALL_CLOCK_KEYS = frozenset({"samples_per_s", "data_wait_share", "elapsed_s"})
"""Keys whose values differ between two otherwise equal runs."""

TrackerName = Literal["wandb", "trackio"]

PROJECT = "triptych"
"""Project name of a run on a tracking server."""

RUN_ID_FILE = "tracking.json"
"""Keeps the id of a run, so that a resumed run continues the same curves."""


class Tracker(Protocol):
    """Receives the numbers of a run, step by step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to the curve of each value."""

    def flush(self) -> None:
        """Write what is buffered; a checkpoint must not be ahead of its curves."""

    def close(self) -> None:
        """Finish the run."""


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
        self.path = folder / METRICS_FILE
        self._file: TextIO | None = None
        self._trackers = trackers
        if silent:
            return
        folder.mkdir(parents=True, exist_ok=True)
        _drop_lines_after(self.path, start_step)
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line `{"step": step, **values}`; floats read back equal.

        Raises:
            CheckpointError: The file was removed, most likely with its run folder; or it cannot be
                written.
        """
        if self._file:
            if os.fstat(self._file.fileno()).st_nlink == 0:
                raise CheckpointError(
                    f"{self.path} was removed while the run was writing to it, and what the run "
                    "would log and save from now on would be lost: it stops. Resume it from its "
                    "last checkpoint if that is still there, else start it again"
                )
            with self._written():
                self._file.write(json.dumps({"step": step, **values}) + "\n")
                self._file.flush()
        for tracker in self._trackers:
            tracker.log(step, values)

    def flush_to_disk(self) -> None:
        """Wait until all lines are on the disk; a checkpoint must not be ahead of its metrics."""
        if self._file:
            with self._written():
                os.fsync(self._file.fileno())
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        """Close the files."""
        if self._file:
            with self._written():
                self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def _written(self) -> AbstractContextManager[None]:
        """Return the context of a write, in which a full disk is told with what to do."""
        return writing(str(self.path), self.path, kind=CheckpointError, then="resume")


GRAD_NORM_MAX = "grad_norm_max"


class StepMeans:
    """Means of the numbers of several steps, which a checkpoint can store.

    An objective that was not active at a step does not count for that step. Of the gradient norm
    there is also the largest.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Count one step's numbers."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        if "grad_norm" in values:
            self._sums[GRAD_NORM_MAX] = max(self._sums.get(GRAD_NORM_MAX, 0.0), values["grad_norm"])
            self._counts[GRAD_NORM_MAX] = 1

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


def open_trackers(
    folder: Path,
    start_step: int,
    *,
    tensorboard: bool,
    names: tuple[TrackerName, ...] = (),
    warn: Callable[[str], None] | None = None,
) -> list[Tracker]:
    """Return the trackers of a run.

    Args:
        folder: The run folder.
        start_step: Steps done.
        tensorboard: Whether to write event files, if TensorBoard is installed.
        names: Services to send the curves to; each is the name of a package.
        warn: Called with a message if TensorBoard is requested and not installed.

    Raises:
        ConfigError: A named package is not installed, or cannot start a run.
    """
    found: list[Tracker] = [RemoteTracker(name, folder) for name in names]
    if tensorboard:
        try:
            found.append(TensorBoardTracker(folder / "tensorboard", start_step))
        except CapabilityError as error:
            if warn is not None:
                warn(f"no TensorBoard event files, but metrics.jsonl holds every number: {error}")
    return found


class TensorBoardTracker:
    """One TensorBoard event file of scalars.

    TensorBoard's own writer is not used: its thread would make it unsafe to fork loader processes.

    Args:
        folder: Folder that `tensorboard --logdir` reads.
        start_step: Steps done; TensorBoard drops points of later steps in older files.

    Raises:
        CapabilityError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        import_extra("tensorboard.compat.proto", "tensorboard", "train.tensorboard")
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2, summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._writer = RecordWriter(self._file)
        self._put(file_version="brain.Event:2")
        restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._put(step=start_step + 1, session_log=restart)
        self.flush()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to the curve of each value."""
        scalars = [
            self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()
        ]
        self._put(step=step, summary=self._summary(value=scalars))

    def flush(self) -> None:
        """Pass everything to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _put(self, **content: Any) -> None:
        event = self._event.Event(wall_time=time.time(), **content)
        self._writer.write(event.SerializeToString())


class RemoteTracker:
    """Curves of Weights & Biases, or of trackio, which has the same interface.

    A resumed run continues the curves that it began. Steps after its last checkpoint, which it
    repeats, are logged again.

    Args:
        name: The package.
        folder: The run folder; its name is the run's name.

    Raises:
        ConfigError: The package is not installed, or cannot start a run.
    """

    def __init__(self, name: TrackerName, folder: Path) -> None:
        package = import_extra(name, name, "train.trackers", "remove it from them")
        options: dict[str, Any] = {"project": PROJECT, "resume": "allow"}
        run_id = _run_id(folder)
        if name == "wandb":
            options |= {"name": folder.name, "id": run_id, "dir": str(folder)}
        else:  # trackio tells runs apart by their names
            options |= {"name": f"{folder.name}-{run_id}"}
        try:
            self._run = package.init(**options)
        except Exception as error:
            raise ConfigError(
                f"{name} cannot start a run: {error}; log in to it, or remove it from "
                "train.trackers"
            ) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to the curve of each value."""
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Do nothing: the package uploads on its own schedule."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _run_id(folder: Path) -> str:
    """Return the run's id on tracking servers; a new run gets a random one."""
    path = folder / RUN_ID_FILE
    if path.is_file():
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    run_id = uuid.uuid4().hex[:8]
    write_json(path, {"id": run_id})
    return run_id
