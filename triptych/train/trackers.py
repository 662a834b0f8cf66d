"""Send a run's numbers to TensorBoard, Weights & Biases or trackio, besides `metrics.jsonl`."""

from __future__ import annotations

import importlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from triptych.core.errors import ConfigError
from triptych.core.files import write_json

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
        except ModuleNotFoundError:
            if warn is not None:
                warn(
                    "no TensorBoard event files: the package is not installed "
                    "(pip install 'triptych[tensorboard]'); metrics.jsonl holds every number"
                )
    return found


class TensorBoardTracker:
    """One TensorBoard event file of scalars.

    TensorBoard's own writer is not used: its thread would make it unsafe to fork loader processes.

    Args:
        folder: Folder that `tensorboard --logdir` reads.
        start_step: Steps done; TensorBoard drops points of later steps in older files.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
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
        try:
            package = importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"train.trackers names {name!r}, which is not installed: "
                f"pip install 'triptych[{name}]', or remove it"
            ) from error
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
