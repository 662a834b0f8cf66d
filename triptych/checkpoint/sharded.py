"""The writer of checkpoints: each process its part, in the background, sealed last.

Every process writes `shard_I-of-N.safetensors` with the parts that it holds of divided tensors and
its share of the others, then a note with size and SHA-256. When all notes are there, rank 0 writes
`checkpoint.json` and renames the temporary folder to `step_N`: a checkpoint is complete or missing,
whenever a process dies. The processes meet in the folder alone, so a write disturbs no collective.
Nothing is pickled; `run` and torch's HuggingFaceStorageReader read the result.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from triptych.checkpoint.nested import split_tensors
from triptych.checkpoint.run import FORMATS, OFFSETS, SEAL, SHARDING, STATE, list_checkpoints
from triptych.checkpoint.tensor_file import write_tensors
from triptych.core.errors import CheckpointError
from triptych.core.files import refusal, write_atomic, write_json
from triptych.distributed.collectives import from_main, gather_objects
from triptych.distributed.env import rank, world_size

_TEMPORARY = ".tmp_"

_RESUME = "resume from the last checkpoint"

_NICENESS = 10
"""Of the writing thread, on Linux: training has the processor first."""

_STALL_S = 600.0
"""Seconds without a byte from another process after which it counts as dead."""

_GRACE_S = 10.0
"""The same once the run ends."""

Placed = tuple[Tensor, tuple[int, ...]]
"""A part of a tensor and where it begins in the whole."""


class _Abandoned(Exception):  # noqa: N818 - an event
    """The write was told to end."""


@dataclass(slots=True)
class _Save:
    """One checkpoint on its way to the disk.

    Attributes:
        step: Optimizer steps done.
        skeleton: The state without its tensors.
        parts: What this process writes, by the tensor's key.
        temporary: Where.
        final: What it is renamed to.
        ready: On a GPU, happens when the copies are there.
        error: What went wrong.
        done: Whether it is sealed.
    """

    step: int
    skeleton: Any
    parts: dict[str, Placed]
    temporary: Path
    final: Path
    ready: Any = None
    error: BaseException | None = None
    done: bool = False
    abandoned: threading.Event = field(default_factory=threading.Event)
    stall_s: float = _STALL_S


class CheckpointWriter:
    """Writes the checkpoints of a run; made, and called, by all its processes together.

    Made on rank 0, it removes what killed writes have left.

    Args:
        folder: The run's `checkpoints` folder, on a disk that all processes see; made if absent.
        keep: Newest checkpoints that stay, at least 1.
        keep_every: Checkpoints of steps that are multiples of it stay as well; None keeps no more.
        background: Copy the state, into memory that is kept for the next time, and write the copy
            while training goes on; else `save` returns when the checkpoint is sealed.

    Raises:
        CheckpointError: The disk refuses, or a process does not see rank 0's folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 2,
        keep_every: int | None = None,
        background: bool = False,
    ) -> None:
        self.folder, self.keep, self.keep_every = folder, keep, keep_every
        self.background = background
        self._attempt = f"{_TEMPORARY}{from_main(uuid.uuid4().hex[:8])}"
        self._save: _Save | None = None
        self._thread: threading.Thread | None = None
        self._sealed: Path | None = None
        self._buffers: dict[str, Tensor] = {}
        self._begin()

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write `folder/step_N`; in the background, begin to, once the last one is finished.

        The checkpoints that no longer count are removed when it is sealed: all but those to keep,
        and those of later steps, since a run that saves step N has not loaded them: they are
        damaged.

        Args:
            step: Optimizer steps done.
            state: Nested dicts with string keys, lists, tensors and JSON values; the same on each
                process, but for what DTensors hold.

        Raises:
            CheckpointError: The state cannot be stored, or the disk refuses (full, read-only).
        """
        self.finish(wait=True)
        skeleton, tensors = split_tensors(state)
        save = _Save(
            step=step,
            skeleton=skeleton,
            parts=local_parts(tensors),
            temporary=self.folder / f"{self._attempt}_step_{step}",
            final=self.folder / f"step_{step}",
        )
        if self.background:
            self._copy(save)
        self._save = save
        if self.background:
            name = f"checkpoint of step {step}"
            self._thread = threading.Thread(
                target=self._write, args=(save,), name=name, daemon=True
            )
            self._thread.start()
        else:
            self._write(save)
            self.finish(wait=True)

    def finish(self, *, wait: bool = False) -> Path | None:
        """Learn what became of the last save; called after each step.

        Args:
            wait: Until it is sealed.

        Returns:
            The newest checkpoint that this writer has sealed; None if there is none yet.

        Raises:
            CheckpointError: The last save could not be written; what there was of it is removed.
        """
        if self._thread is not None and wait:
            self._thread.join()
        if self._save is not None and (self._thread is None or not self._thread.is_alive()):
            save, self._save, self._thread = self._save, None, None
            if save.error is not None:
                raise save.error
            self._sealed = save.final if save.done else self._sealed
        return self._sealed

    @contextlib.contextmanager
    def closing(self, warn: Callable[[str], None]) -> Iterator[None]:
        """Bring a save to its end at the end of the block; after Ctrl-C, abandon it.

        Args:
            warn: Called with what became of it where another error ends the block.
        """
        try:
            yield
        except KeyboardInterrupt:
            if self._save is not None:
                self._save.abandoned.set()
            self.finish(wait=True)
            raise
        except BaseException:
            if self._save is not None:
                self._save.stall_s = _GRACE_S  # other processes may be gone
            try:
                self.finish(wait=True)
            except CheckpointError as error:
                warn(str(error))
            raise
        finally:
            self._buffers.clear()
        self.finish(wait=True)

    def _begin(self) -> None:
        """Remove what killed writes have left, and check that all processes see one folder."""
        marker = self.folder / self._attempt
        failure: str | None = None
        if rank() == 0:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                for path in self.folder.glob(f"{_TEMPORARY}*"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                if world_size() > 1:
                    marker.mkdir()
            except OSError as error:
                failure = refusal(f"checkpoints in {self.folder}", error, _RESUME)
        if world_size() > 1:
            failure = from_main(failure)
            seen = gather_objects(failure is not None or marker.is_dir())
            if rank() == 0 and failure is None:
                marker.rmdir()
            if not all(seen):
                failure = (
                    f"process {seen.index(False)} does not see what process 0 makes in "
                    f"{self.folder}: choose a run folder on a disk that all machines share"
                )
        if failure is not None:
            raise CheckpointError(failure)

    def _copy(self, save: _Save) -> None:
        """Replace the parts of a save by copies, in memory that is kept for the next save."""
        buffers: dict[str, Tensor] = {}
        on_gpu, threads = False, torch.get_num_threads()
        torch.set_num_threads(1)  # as fast as memory; several wait for each other on a busy machine
        try:
            for key, (tensor, offsets) in save.parts.items():
                buffer = self._buffers.get(key)
                if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
                    buffer = torch.empty(
                        tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda
                    )
                buffers[key] = buffer.copy_(tensor, non_blocking=True)
                save.parts[key] = buffer, offsets
                on_gpu = on_gpu or tensor.is_cuda
        except RuntimeError as error:  # torch's allocators
            raise CheckpointError(
                f"no memory for the copy from which {save.final} is written in the background: "
                f"{error}; set train.async_checkpoints to false"
            ) from error
        finally:
            torch.set_num_threads(threads)
        self._buffers = buffers
        if on_gpu:  # later kernels of this stream wait for the copies; the thread does as well
            save.ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            save.ready.record()

    def _write(self, save: _Save) -> None:
        """Write this process's part of a save and see it sealed; errors are left in `save`."""
        try:
            if threading.current_thread() is self._thread and sys.platform == "linux":
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
            if save.ready is not None:
                save.ready.synchronize()
            _write_part(save)
            if rank() == 0:
                self._seal(save)
            else:
                _await(save, [])
            save.done = True
        except _Abandoned:
            shutil.rmtree(save.temporary, ignore_errors=True)
        except (OSError, CheckpointError) as error:
            text = str(error)
            if not isinstance(error, CheckpointError):
                text = refusal(f"checkpoint {save.final}", error, _RESUME)
            save.error = CheckpointError(_give_up(save, text))
            save.error.__cause__ = error
        except BaseException as error:  # an error of ours: it must not end with the thread
            save.error = error

    def _seal(self, save: _Save) -> None:
        """Wait for the notes of all processes, then make the checkpoint visible."""
        notes = [save.temporary / _note(number) for number in range(world_size())]
        _await(save, notes)
        files: dict[str, Any] = {}
        for note in notes:
            files |= json.loads(note.read_text(encoding="utf-8"))
            note.unlink()
        seal = {"format": FORMATS[-1], "step": save.step, "files": files}
        write_json(save.temporary / SEAL, seal, parents=False)
        _flush(save.temporary)
        self._discard(save.final)
        save.temporary.rename(save.final)
        _flush(self.folder)
        self._prune(save.step)

    def _prune(self, newest: int) -> None:
        steps = list_checkpoints(self.folder)
        kept = [step for step in steps if step <= newest]
        kept = kept[-self.keep :] + [
            step for step in kept if self.keep_every is not None and step % self.keep_every == 0
        ]
        for step in steps:
            if step not in kept:
                self._discard(self.folder / f"step_{step}")

    def _discard(self, path: Path) -> None:
        """Remove a folder, if it is there; a kill half-way leaves only a temporary name."""
        if path.exists():
            aside = path.with_name(f"{self._attempt}_old_{path.name}")
            path.rename(aside)
            shutil.rmtree(aside)


def local_parts(tensors: Mapping[str, Tensor]) -> dict[str, Placed]:
    """Return what this process writes of a state, by key; all processes' parts make up the whole.

    Of a DTensor that is what the process holds, unless another holds the same and comes first in
    the mesh. Plain tensors are alike on all processes: the largest first, each goes to the process
    that has the fewest bytes of them.

    Raises:
        CheckpointError: A DTensor is neither sharded nor replicated.
    """
    parts: dict[str, Placed] = {}
    loads = [0] * world_size()
    plain = {key: t for key, t in tensors.items() if not isinstance(t, DTensor)}
    for key in sorted(plain, key=lambda key: (-plain[key].nbytes, key)):
        writer = loads.index(min(loads))
        loads[writer] += max(plain[key].nbytes, 1)
        if writer == rank():
            parts[key] = plain[key], (0,) * plain[key].ndim
    for key, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            continue
        for placement in tensor.placements:
            if not isinstance(placement, (Shard, Replicate)):
                raise CheckpointError(f"cannot save {key}: it is placed as {placement}")
        mesh = tensor.device_mesh
        shape, offsets = compute_local_shape_and_global_offset(
            tensor.shape, mesh, tensor.placements
        )
        place = mesh.get_coordinate() or [1]  # None: this process is not in the mesh
        replicas = zip(place, tensor.placements, strict=True)
        first = all(at == 0 for at, placement in replicas if isinstance(placement, Replicate))
        if first and mesh.get_coordinate() is not None and 0 not in shape:
            parts[key] = tensor.to_local().detach(), tuple(offsets)
    return parts


def _write_part(save: _Save) -> None:
    """Write this process's file, on rank 0 also the state, and then the note."""

    def pause() -> None:
        if save.abandoned.is_set():
            raise _Abandoned

    for folder in (save.final.parent, save.temporary):
        # no parents, so that a run whose folder was removed notices: here, or where it writes next
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
    name = f"shard_{rank():05d}-of-{world_size():05d}.safetensors"
    begins = {key: {OFFSETS: list(offsets)} for key, (_, offsets) in save.parts.items()}
    files = {
        name: write_tensors(
            save.temporary / name,
            {key: tensor for key, (tensor, _) in save.parts.items()},
            {"format": "pt", "DCP_VERSION": "1.0", SHARDING: json.dumps(begins)},
            pause=pause,
        )
    }
    if rank() == 0:
        content = json.dumps(save.skeleton).encode()
        write_atomic(save.temporary / STATE, content, parents=False)
        digest = hashlib.sha256(content).hexdigest()
        files[STATE] = {"size": len(content), "sha256": digest}
    write_json(save.temporary / _note(rank()), files, parents=False)


def _await(save: _Save, notes: list[Path]) -> None:
    """Wait until the notes are there; without any, until rank 0 has sealed the checkpoint.

    Raises:
        CheckpointError: Another process failed, or is gone.
    """
    pause_s, last, changed_s = 0.005, -1, time.monotonic()
    while not (notes and all(note.exists() for note in notes)):
        if _failed(save).exists():
            raise CheckpointError(f"checkpoint {save.final} was not written")
        names = {path.name for path in save.final.parent.iterdir()}
        if save.temporary.name not in names:
            if save.final.name not in names:  # a listing may miss both while one becomes the other
                time.sleep(1.0)
                names = {path.name for path in save.final.parent.iterdir()}
            if notes or save.final.name not in names:
                raise CheckpointError(
                    f"checkpoint {save.final} was not written: another process failed, or its "
                    "folder was removed; resume from the last checkpoint"
                )
            return
        written = _bytes_in(save.temporary)
        if written != last:
            last, changed_s = written, time.monotonic()
        if save.abandoned.is_set():
            raise _Abandoned
        if time.monotonic() - changed_s > save.stall_s:
            raise CheckpointError(
                f"checkpoint {save.final} was not written: a process wrote nothing for "
                f"{save.stall_s:.0f} s; resume from the last checkpoint"
            )
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, 0.2)


def _bytes_in(folder: Path) -> int:
    """Return the bytes of a folder's files, some of which may vanish or move meanwhile."""
    total = 0
    with contextlib.suppress(FileNotFoundError):  # rank 0 removes notes, and renames the folder
        for path in folder.glob("*"):
            total += path.stat().st_size
    return total


def _give_up(save: _Save, text: str) -> str:
    """Remove what a failed save has left, and tell the other processes.

    Returns:
        What went wrong first, on any of them.
    """
    failed = _failed(save)
    with contextlib.suppress(OSError):  # a disk may be too full, or its folder gone
        if failed.exists():
            text = failed.read_text(encoding="utf-8") or text
        elif world_size() > 1:
            write_atomic(failed, text, parents=False)
    shutil.rmtree(save.temporary, ignore_errors=True)
    return text


def _failed(save: _Save) -> Path:
    """Return the file by which a process tells the others that a save has failed."""
    return save.temporary.with_name(f"{save.temporary.name}_failed")


def _note(number: int) -> str:
    return f"rank_{number}.json"


def _flush(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
