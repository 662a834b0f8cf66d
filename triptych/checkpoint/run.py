"""Checkpoints of a run, read: `checkpoints/step_N/`, which `sharded` writes.

A checkpoint holds safetensors files, `state.json` (all that is no tensor) and `checkpoint.json`
(format, step, size and SHA-256 of each file). Format 2 has a file for each process that saved, with
the part that it held of each tensor and where that begins, as torch's HuggingFaceStorageReader
expects it; format 1, of Triptych 0.3 and before, has one file. Both are read on any number of
processes. The state is one nested dict of tensors and JSON values.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from triptych.checkpoint.nested import join_tensors
from triptych.checkpoint.tensor_file import DTYPES
from triptych.core.errors import CheckpointError, TriptychError
from triptych.core.reading import MAX_SETTINGS_BYTES, check_regular, open_regular, read_json
from triptych.distributed.collectives import from_main, gather_objects
from triptych.distributed.env import rank, world_size

FORMATS = (1, 2)
STATE, SEAL = "state.json", "checkpoint.json"

SHARDING = "DCP_SHARDING_INFO"
"""Key in a file's metadata, and the one below it, where HuggingFaceStorageReader looks for where
the parts of tensors begin (`torch.distributed.checkpoint._hf_utils`, which is private)."""
OFFSETS = "saved_offsets"

_DAMAGE = (
    *(SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError),
    *(IndexError, OverflowError, RecursionError),
)
"""What damaged files make readers raise; not RuntimeError, which a GPU without room raises too."""

Like = Callable[[str], Tensor | None]
"""From the path of a tensor in the state to a DTensor that it is divided like, or None."""


def load_checkpoint(
    path: Path, *, like: Like | None = None, only: str | None = None
) -> dict[str, Any]:
    """Read one checkpoint, on the CPU, and verify every byte of it.

    Processes that train together call this together: each verifies a part of the files.

    Args:
        path: The checkpoint, `step_N`.
        like: Given the path of a tensor in the state, such as "/modules/model.weight", returns the
            DTensor whose device and division it takes; then only this process's part is read.
            What it returns None, a plain tensor or one of another shape for comes whole.
        only: The beginning of the paths of tensors to read; others are None in the result.

    Raises:
        CheckpointError: A file is missing, truncated or changed, or of another format.
    """
    problems = [found for found in gather_objects(_problem(path)) if found is not None]
    if problems:
        raise CheckpointError(problems[0])
    skeleton = read_json(path / STATE, error=CheckpointError)
    if not isinstance(skeleton, dict):
        raise CheckpointError(f"{path / STATE} is damaged: it holds no object")
    with _open_tensors(path) as stored:

        def read(key: str, place: str) -> Tensor | None:
            if only is not None and not place.startswith(only):
                return None
            return stored.read(key, None if like is None else like(place))

        return {name: join_tensors(part, read, f"/{name}") for name, part in skeleton.items()}


def load_latest(
    folder: Path,
    *,
    like: Like | None = None,
    only: str | None = None,
    warn: Callable[[str], None] = lambda message: None,
) -> tuple[int, dict[str, Any]] | None:
    """Read the newest checkpoint that is whole; processes that train together find the same.

    Args:
        folder: The run's `checkpoints` folder.
        like: As for `load_checkpoint`.
        only: As for `load_checkpoint`.
        warn: Called with a line for each newer checkpoint that had to be passed over.

    Returns:
        Its step and state; None if the folder holds no checkpoint.

    Raises:
        CheckpointError: There are checkpoints, and all are damaged.
    """
    steps = from_main(list_checkpoints(folder))
    for step in reversed(steps):
        try:
            return step, load_checkpoint(folder / f"step_{step}", like=like, only=only)
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


def _problem(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, as far as this process's share of the files tells."""
    try:
        check_regular(path / SEAL, MAX_SETTINGS_BYTES)
        seal = json.loads((path / SEAL).read_text(encoding="utf-8"))
        if seal["format"] not in FORMATS:
            known = " and ".join(map(str, FORMATS))
            return f"{path}: format {seal['format']}, this version reads {known}"
        if path.name != f"step_{seal['step']}":
            return f"{path} holds step {seal['step']}"
        for name, expected in list(seal["files"].items())[rank() :: world_size()]:
            if Path(name).name != name:
                return f"{path / SEAL} is damaged: it names {name!r}"
            with open_regular(path / name) as file:
                size = file.seek(0, 2)
                file.seek(0)
                if size != expected["size"] or _digest(file) != expected["sha256"]:
                    return f"{path / name} is damaged: size or SHA-256 differs"
    except OSError as error:
        return f"{path} is incomplete: {error.strerror}: {error.filename}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{path} is damaged: {SEAL}: {type(error).__name__} {error}"
    return None


def _digest(file: Any) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a tensor: the open file that holds it, where it begins, and its shape."""

    file: Any
    offsets: Sequence[int]
    shape: Sequence[int]


@contextlib.contextmanager
def _open_tensors(path: Path) -> Iterator[_StoredTensors]:
    """Open the files of a checkpoint.

    Raises:
        CheckpointError: One of them is no safetensors file, although its hash is right.
    """
    pieces: dict[str, list[_Piece]] = {}
    dtypes: dict[str, torch.dtype] = {}
    names = {name: dtype for dtype, name in DTYPES.items()}
    with contextlib.ExitStack() as stack:
        try:
            for found in sorted(path.glob("*.safetensors")):
                check_regular(found)
                file = stack.enter_context(safe_open(found, framework="pt"))
                begins = json.loads((file.metadata() or {}).get(SHARDING, "{}"))
                for key in file.keys():  # noqa: SIM118 - not a dict
                    part = file.get_slice(key)
                    shape = part.get_shape()
                    offsets = begins[key][OFFSETS] if begins else [0] * len(shape)
                    pieces.setdefault(key, []).append(_Piece(file, offsets, shape))
                    dtypes[key] = names[part.get_dtype()]
            yield _StoredTensors(path, pieces, dtypes)
        except TriptychError:
            raise
        except _DAMAGE as error:
            raise CheckpointError(f"{path} is damaged: {type(error).__name__} {error}") from error


@dataclass(frozen=True, slots=True)
class _StoredTensors:
    """The tensors of a checkpoint, wherever their parts lie."""

    path: Path
    pieces: dict[str, list[_Piece]]
    dtypes: dict[str, torch.dtype]

    def read(self, key: str, like: Tensor | None) -> Tensor:
        """Return a tensor: whole, or this process's part where a DTensor of its shape is given."""
        if key not in self.pieces:
            raise CheckpointError(f"{self.path} is damaged: tensor {key!r} is missing")
        ends = [[o + n for o, n in zip(p.offsets, p.shape, strict=True)] for p in self.pieces[key]]
        shape = [max(sizes) for sizes in zip(*ends, strict=True)]
        stored = sum(math.prod(piece.shape) for piece in self.pieces[key])
        if math.prod(shape) > stored or any(
            min(p.offsets, default=0) < 0 for p in self.pieces[key]
        ):
            raise CheckpointError(
                f"{self.path} is damaged: a part of {key!r} is in none of its files"
            )
        if not isinstance(like, DTensor) or list(like.shape) != shape:
            return self._read_region(key, [0] * len(shape), shape)
        local, offsets = compute_local_shape_and_global_offset(
            like.shape, like.device_mesh, like.placements
        )
        part = self._read_region(key, offsets, local).to(like.device)
        return DTensor.from_local(
            part,
            like.device_mesh,
            like.placements,
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        )

    def _read_region(self, key: str, begin: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Return the part of a tensor that begins at `begin`, reading no other bytes."""
        for piece in self.pieces[key]:
            if list(piece.offsets) == list(begin) and list(piece.shape) == list(shape):
                whole: Tensor = piece.file.get_tensor(key)
                return whole
        out = torch.empty(tuple(shape), dtype=self.dtypes[key])
        read = 0
        for piece in self.pieces[key]:
            source, target = [], []
            for wanted, size, offset, length in zip(
                begin, shape, piece.offsets, piece.shape, strict=True
            ):
                low, high = max(wanted, offset), min(wanted + size, offset + length)
                source.append(slice(low - offset, high - offset))
                target.append(slice(low - wanted, high - wanted))
            if all(part.start < part.stop for part in target):
                content = piece.file.get_slice(key)[tuple(source)]
                out[tuple(target)] = content
                read += content.numel()
        if read != out.numel():
            raise CheckpointError(
                f"{self.path} is damaged: a part of {key!r} is in none of its files"
            )
        return out
