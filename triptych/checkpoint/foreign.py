"""Weights that other software wrote: read without running any code of the file, and written back.

A file that cannot be read without unpickling objects is refused; no option changes that.
"""

from __future__ import annotations

import argparse
import pickle
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.checkpoint.pickles import (
    is_archive,
    is_torchscript,
    open_archive,
    read_torchscript,
)
from triptych.checkpoint.tensor_file import check_tensors, read_tensors, write_tensors
from triptych.core.errors import CheckpointError
from triptych.core.files import placed, write_json, writing
from triptych.core.reading import check_regular, read_json_object, reading

WRAPPERS = ("model", "module", "state_dict", "model_state_dict")
"""Keys under which training code stores a state dict: plain, DeepSpeed, Lightning, tutorials."""

PREFIXES = ("module.", "model.")
"""What wrappers put before every name: data parallelism, Lightning."""

FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
"""What a transformers folder holds, whole or as shards with `NAME.index.json` beside them."""

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")


@dataclass(frozen=True, slots=True)
class ForeignCheckpoint:
    """Named tensors of a foreign file or folder.

    Attributes:
        path: Where they come from.
        tensors: The state dict, unwrapped, on the CPU; names without a common `module.` prefix.
        config: Content of the folder's `config.json`; empty for a single file.
    """

    path: Path
    tensors: dict[str, Tensor]
    config: dict[str, Any]


def read_foreign(path: str | Path) -> ForeignCheckpoint:
    """Read a `.pth`, `.pt`, `.bin`, `.ckpt`, `.tar` or `.safetensors` file, or a folder.

    A folder is one that transformers writes: safetensors or bin, in one file or in shards. A
    TorchScript archive, as OpenAI publishes CLIP, gives its tensors; its program is not run.

    Args:
        path: The file or folder.

    Raises:
        CheckpointError: There is none, it is damaged, it holds no tensors, or it cannot be read
            without running code of the file.
    """
    path = Path(path)
    with reading(path, CheckpointError):
        if not path.exists():
            raise CheckpointError(f"there is no file or folder {path}")
        config: dict[str, Any] = {}
        if path.is_dir():
            tensors = _read_folder(path)
            if (path / "config.json").exists():
                config = read_json_object(path / "config.json", error=CheckpointError)
        else:
            tensors = _read_file(path)
    return ForeignCheckpoint(path, tensors, config)


def unwrap_state(payload: Any, where: str) -> dict[str, Tensor]:
    """Return the named tensors inside what a training script stored.

    Args:
        payload: A state dict, or mappings around one under a name of `WRAPPERS`.
        where: The file, for messages.

    Raises:
        CheckpointError: There are no named tensors.
    """
    seen: set[int] = set()
    while isinstance(payload, Mapping):
        if id(payload) in seen:
            raise CheckpointError(f"{where} holds no state dict: a dict in it holds itself")
        seen.add(id(payload))
        inner = [payload[key] for key in WRAPPERS if isinstance(payload.get(key), Mapping)]
        if not inner:
            break
        payload = inner[0]
    found: dict[str, Tensor] = {}
    if isinstance(payload, Mapping):
        found = {k: t for k, t in payload.items() if isinstance(k, str) and isinstance(t, Tensor)}
    if not found:
        held = f"it holds a {type(payload).__name__}"
        if isinstance(payload, Mapping):
            keys = ", ".join(str(key)[:50] for key in list(payload)[:5])
            held = f"its keys: {keys}" if payload else "it is empty"
        raise CheckpointError(
            f"{where} holds no state dict ({held}): expected named tensors, bare or under "
            f"{', '.join(map(repr, WRAPPERS))}"
        )
    for prefix in PREFIXES * 2:
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def write_foreign(path: Path, tensors: Mapping[str, Tensor], *, wrapper: str | None) -> None:
    """Write a state dict for other software; never leave part of a file.

    Args:
        path: A `.safetensors` file, or a file for `torch.load`.
        tensors: By foreign name.
        wrapper: Key that holds the state dict in a file for `torch.load`; None leaves it bare.

    Raises:
        CheckpointError: The disk refuses, or the name has no known suffix.
    """
    if path.suffix not in (*TORCH_SUFFIXES, ".safetensors"):
        known = ", ".join((*TORCH_SUFFIXES, ".safetensors"))
        raise CheckpointError(f"{path}: the name must end in one of {known}")
    with writing(str(path), path, kind=CheckpointError), placed(path) as temporary:
        if path.suffix == ".safetensors":
            write_tensors(temporary, tensors, {"format": "pt"})
        else:
            state = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
            with temporary.open("wb") as file:  # a path would put the name into the file
                torch.save(state if wrapper is None else {wrapper: state}, file)


def write_foreign_folder(
    folder: Path,
    tensors: Mapping[str, Tensor],
    configs: Mapping[str, Mapping[str, Any]],
    files: Iterable[Path] = (),
) -> None:
    """Write `model.safetensors` and its JSON files as transformers reads them.

    Args:
        folder: New; it appears whole or not at all.
        tensors: By foreign name.
        configs: Content of `config.json` and other such files, by name.
        files: Others that are copied into it, such as the tokenizer.

    Raises:
        CheckpointError: The folder exists, or the disk refuses.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} exists: choose another folder")
    with writing(str(folder), folder, kind=CheckpointError), placed(folder) as temporary:
        temporary.mkdir()
        write_tensors(temporary / FOLDER_FILES[0], tensors, {"format": "pt"})
        for name, content in configs.items():
            write_json(temporary / name, dict(content))
        for file in files:
            shutil.copyfile(file, temporary / file.name)


def _read_file(path: Path) -> dict[str, Tensor]:
    """Read one file by its content: safetensors by its name, the others as torch finds them."""
    with reading(path, CheckpointError):
        check_regular(path)
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty")
    if path.suffix == ".safetensors":
        return unwrap_state(read_tensors(path)[0], str(path))
    if path.suffix not in TORCH_SUFFIXES:
        known = ", ".join((*TORCH_SUFFIXES, ".safetensors"))
        raise CheckpointError(f"{path}: cannot tell its format; the name must end in {known}")
    tensors = unwrap_state(_read_torch(path), str(path))
    check_tensors(path, tensors)
    return tensors


def _read_torch(path: Path) -> Any:
    """Read what torch.save or torch.jit.save wrote."""
    if not is_archive(path):
        return _torch_load(path, mmap=False)
    with open_archive(path) as archive:
        if is_torchscript(archive):
            return read_torchscript(archive, path)
    return _torch_load(path, mmap=True)


def _torch_load(path: Path, *, mmap: bool) -> Any:
    """Call `torch.load` without leave to build objects, and name what is wrong with the file."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # inert: arguments of a script
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        detail = str(error)
        if "GLOBAL" in detail or "Unsupported class" in detail:
            what = next((line for line in detail.splitlines() if "GLOBAL" in line), detail)
            raise CheckpointError(
                f"{path} cannot be read without running code that it names, which is refused "
                f"({what.strip()}). If you trust its author, save its state dict alone, by "
                "torch.save(model.state_dict(), NEW), and import that"
            ) from error
        raise CheckpointError(f"{path} is damaged or no torch file; copy it again") from error
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError, ... on bad bytes
        detail = f" ({type(error).__name__}: {str(error)[:200]})"
        if "weights_only" in detail:  # torch's advice, to run what the file says
            detail = ""
        raise CheckpointError(
            f"{path} is truncated, damaged or no torch file{detail}; copy it again"
        ) from error


def _read_folder(folder: Path) -> dict[str, Tensor]:
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return _read_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index)
    present = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    raise CheckpointError(
        f"{folder} holds no weights: expected {' or '.join(FOLDER_FILES)}, or shards with "
        f"an index.json (found {present})"
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Read the files that an index names; each tensor must be where the index says."""
    shard_of = read_json_object(index, error=CheckpointError).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise CheckpointError(f"{index} has no weight_map")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(map(str, shard_of.values()))):
        shard = index.parent / name
        if Path(name).name != name or name in (".", ".."):
            raise CheckpointError(f"{index} names {name!r}, which is not a file beside it")
        if not shard.exists():
            raise CheckpointError(f"{shard} is missing: {index.name} names it; copy it as well")
        tensors |= _read_file(shard)
    absent = sorted(set(shard_of) - set(tensors))
    if absent:
        raise CheckpointError(f"{index.parent}: no shard holds {absent[0]} ({len(absent)} absent)")
    return tensors
