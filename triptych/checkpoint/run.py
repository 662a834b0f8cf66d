"""Checkpoints of a run: `checkpoints/step_N/`, never partly written.

A checkpoint holds `tensors.safetensors`, `state.json` (the rest) and `checkpoint.json` (step, size
and SHA-256 of both). It is written under a temporary name, flushed to disk and renamed, so a kill
at any moment leaves the previous one usable. The state is one nested dict of tensors and JSON
values, the form that `torch.distributed.checkpoint` takes as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych.core.errors import CheckpointError

_FORMAT = 1
_TENSORS, _STATE, _SEAL = "tensors.safetensors", "state.json", "checkpoint.json"
_TEMPORARY = ".tmp_"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int = 2) -> Path:
    """Write `folder/step_N` and remove all but the newest `keep` checkpoints.

    Leftovers of writes that were killed are removed, and so are checkpoints of later steps: a run
    that saves step N has not loaded them, because they are damaged.

    Args:
        folder: The run's `checkpoints` folder; made if absent.
        step: Optimizer steps done.
        state: Nested dicts with string keys, lists, tensors and JSON values.
        keep: Checkpoints that stay, at least 1.

    Returns:
        The folder of the checkpoint.

    Raises:
        CheckpointError: The state cannot be stored, or the disk refuses (full, read-only).
    """
    skeleton, tensors = split_tensors(state)
    final = folder / f"step_{step}"
    temporary = folder / f"{_TEMPORARY}step_{step}_{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        temporary.mkdir()
        save_file(tensors, temporary / _TENSORS)
        (temporary / _STATE).write_text(json.dumps(skeleton), encoding="utf-8")
        seal = {
            "format": _FORMAT,
            "step": step,
            "files": {name: _describe(temporary / name) for name in (_TENSORS, _STATE)},
        }
        (temporary / _SEAL).write_text(json.dumps(seal, indent=2) + "\n", encoding="utf-8")
        for name in (_TENSORS, _STATE, _SEAL, "."):
            _flush(temporary / name)
        _discard(final)
        temporary.rename(final)
        _flush(folder)
        _prune(folder, newest=step, keep=keep)
    except OSError as error:
        raise CheckpointError(
            f"cannot write checkpoint {final}: {error.strerror}; "
            "free space on the disk or choose another run folder, then resume"
        ) from error
    return final


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint, on the CPU, and verify every byte of it.

    Raises:
        CheckpointError: A file is missing, truncated or changed, or of another format.
    """
    try:
        seal = json.loads((path / _SEAL).read_text(encoding="utf-8"))
        if seal["format"] != _FORMAT:
            raise CheckpointError(f"{path}: format {seal['format']}, this version reads {_FORMAT}")
        if path.name != f"step_{seal['step']}":
            raise CheckpointError(f"{path} holds step {seal['step']}")
        for name, expected in seal["files"].items():
            if _describe(path / name) != expected:
                raise CheckpointError(f"{path / name} is damaged: size or SHA-256 differs")
        skeleton = json.loads((path / _STATE).read_text(encoding="utf-8"))
        state = join_tensors(skeleton, load_file(path / _TENSORS))
    except OSError as error:
        raise CheckpointError(f"{path} is incomplete: {error.strerror}: {error.filename}") from None
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    assert isinstance(state, dict)
    return state


def load_latest(
    folder: Path, *, warn: Callable[[str], None] = lambda message: None
) -> tuple[int, dict[str, Any]] | None:
    """Read the newest checkpoint that is whole.

    Args:
        folder: The run's `checkpoints` folder.
        warn: Called with a line for each newer checkpoint that had to be passed over.

    Returns:
        Its step and state; None if the folder holds no checkpoint.

    Raises:
        CheckpointError: There are checkpoints, and all are damaged.
    """
    steps = list_checkpoints(folder)
    for step in reversed(steps):
        try:
            return step, load_checkpoint(folder / f"step_{step}")
        except CheckpointError as error:
            warn(f"checkpoint passed over: {error}")
    if steps:
        raise CheckpointError(
            f"every checkpoint in {folder} is damaged; remove the folder to start again"
        )
    return None


def list_checkpoints(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    matches = (re.fullmatch(r"step_(\d+)", path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(path: Path) -> None:
    """Remove a folder, if it is there; a kill half-way leaves only a temporary name."""
    if path.exists():
        aside = path.with_name(f"{_TEMPORARY}old_{path.name}_{os.getpid()}")
        path.rename(aside)
        shutil.rmtree(aside)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path)


def _prune(folder: Path, *, newest: int, keep: int) -> None:
    steps = list_checkpoints(folder)
    kept = [step for step in steps if step <= newest][-keep:]
    for step in steps:
        if step not in kept:
            _discard(folder / f"step_{step}")


_TENSOR = "__tensor__"


def split_tensors(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return a JSON-able skeleton of `state` and its tensors by path.

    A tensor that occurs twice (tied weights) is stored once. Tuples become lists.

    Args:
        state: Nested dicts with string keys, lists and tuples of tensors and JSON values.

    Returns:
        The skeleton, in which `{"__tensor__": key}` stands for a tensor, and contiguous CPU
        tensors by key, none of which shares memory with another.

    Raises:
        CheckpointError: A value or key that JSON cannot hold, with its path.
    """
    tensors: dict[str, Tensor] = {}
    known: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()

    def visit(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            key = known.setdefault(_identity(value), path)
            if key == path:
                copy = _detached_copy(value)
                if copy.untyped_storage().data_ptr() in storages:  # another view of a stored one
                    copy = copy.clone()
                storages.add(copy.untyped_storage().data_ptr())
                tensors[key] = copy
            return {_TENSOR: key}
        if isinstance(value, dict):
            for name in value:
                if not isinstance(name, str) or name == _TENSOR:
                    raise CheckpointError(f"cannot save {path or 'state'}: key {name!r}")
            return {name: visit(item, f"{path}/{name}") for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [visit(item, f"{path}/{index}") for index, item in enumerate(value)]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise CheckpointError(f"cannot save {path}: a {type(value).__name__} is not JSON")

    return visit(state, ""), tensors


def join_tensors(skeleton: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `split_tensors`.

    Raises:
        CheckpointError: The skeleton names a tensor that is not there.
    """
    if isinstance(skeleton, dict):
        if skeleton.keys() == {_TENSOR}:
            if skeleton[_TENSOR] not in tensors:
                raise CheckpointError(f"tensor {skeleton[_TENSOR]!r} is missing")
            return tensors[skeleton[_TENSOR]]
        return {name: join_tensors(item, tensors) for name, item in skeleton.items()}
    if isinstance(skeleton, list):
        return [join_tensors(item, tensors) for item in skeleton]
    return skeleton


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Return a key that is equal for two views of exactly the same memory."""
    if tensor.numel() == 0:
        return (id(tensor),)
    layout = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
    return (str(tensor.device), *layout)


def _detached_copy(tensor: Tensor) -> Tensor:
    """Return a contiguous CPU tensor that owns all of its memory, and no more."""
    tensor = tensor.detach().to("cpu").contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
