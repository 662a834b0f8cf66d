"""TensorBoard event files without TensorBoard's writer thread, so that loaders may fork."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class EventFile:
    """One event file of scalars.

    Args:
        folder: Folder that `tensorboard --logdir` reads.
        start_step: Steps done; TensorBoard drops points of later steps in older files.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._writer = RecordWriter(self._file)
        self._put(Event(wall_time=time.time(), file_version="brain.Event:2"))
        restart = SessionLog(status=SessionLog.START)
        self._put(Event(wall_time=time.time(), step=start_step + 1, session_log=restart))
        self.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to the curve of each value."""
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._put(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _put(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())
