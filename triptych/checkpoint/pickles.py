"""Tensors of TorchScript archives and of DALL-E's modules, read without running their code.

A TorchScript archive is a zip: `data.pkl` describes objects, `data/N` holds the bytes of storage N,
`code/` is a program. `torch.jit.load` would run that program's constructors; here every class that
the description names becomes an inert record, and only tensors are rebuilt.

OpenAI's `encoder.pkl` and `decoder.pkl` name classes of the `dall_e` package. Inert objects stand
for these classes, so nothing of the file runs; every other class is refused, as torch does.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from triptych.checkpoint.tensor_file import check_tensors, room_for
from triptych.core.errors import CheckpointError
from triptych.core.reading import open_regular, open_zip, reading

_ZIP_MAGIC = b"PK\x03\x04"
MAX_OBJECTS, MAX_DEPTH = 200_000, 100
"""Of an archive's description: objects that are visited, each as often as others hold it."""

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Record:
    """Stands for an object of the archive's program: only its attributes are kept."""

    attributes: dict[str, Any]

    def __new__(cls, *_: Any) -> _Record:
        record = super().__new__(cls)
        record.attributes = {}
        return record

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Reader(pickle.Unpickler):
    """Rebuilds tensors; every other name of the file becomes a `_Record`."""

    def __init__(self, file: io.BytesIO, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a global name; nothing of the file is imported."""
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module == "torch.jit._pickle" and name == "restore_type_tag":
            return lambda value, _: value
        if module == "torch.jit._pickle":
            return list
        return _Record

    def persistent_load(self, pid: Any) -> Tensor:
        """Return storage `key` of ("storage", type, key, device, size) as a flat tensor."""
        _, dtype, key, _, _ = pid
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            self._storages[key] = flat
        return self._storages[key]


def is_archive(path: Path) -> bool:
    """Say whether a file is a zip archive, as torch.save and torch.jit.save write."""
    with reading(path, CheckpointError), open_regular(path) as file:
        begins_so = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
        if not begins_so or zipfile.is_zipfile(file):
            return begins_so
    raise CheckpointError(
        f"{path} is truncated, damaged or no torch file (a zip without an end); copy it again"
    )


def open_archive(path: Path) -> AbstractContextManager[zipfile.ZipFile]:
    """Open a zip archive whose content is not far larger than it is; torch knows no such limit."""
    return open_zip(path, max_bytes=room_for(path), error=CheckpointError)


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    """Say whether an archive is one of TorchScript: it has a constants.pkl."""
    return any(PurePosixPath(name).name == "constants.pkl" for name in archive.namelist())


def read_torchscript(archive: zipfile.ZipFile, path: Path) -> dict[str, Tensor]:
    """Return the parameters and buffers of a TorchScript archive by dotted name.

    Args:
        archive: As `open_archive` gives it.
        path: Its file, for messages.

    Raises:
        CheckpointError: The archive is damaged.
    """
    try:
        names = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
        root = names[0].removesuffix("/data.pkl")
        top = _Reader(io.BytesIO(archive.read(names[0])), archive, root).load()
        return dict(_walk(top, _inside_record))
    except Exception as error:  # anything can be wrong with foreign bytes
        raise CheckpointError(f"{path} is a damaged TorchScript archive: {error!r}") from error


def _rebuild(
    flat: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    return flat.as_strided(tuple(size), tuple(stride), offset)


def _walk(
    top: Any, inside: Callable[[Any], Iterable[tuple[str, Any]]]
) -> Iterator[tuple[str, Tensor]]:
    """Return the tensors below an object, by dotted name.

    Args:
        top: The object.
        inside: Returns the named parts of an object.

    Raises:
        CheckpointError: Objects hold one another, in a circle or without end.
    """
    waiting = [("", 0, top)]
    for _ in range(MAX_OBJECTS):
        if not waiting:
            return
        name, depth, value = waiting.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif depth < MAX_DEPTH:
            parts = [(f"{name}.{n}" if name else n, depth + 1, part) for n, part in inside(value)]
            waiting += reversed(parts)
    raise CheckpointError(f"its objects hold more than {MAX_OBJECTS} others")


def _inside_record(value: Any) -> Iterable[tuple[str, Any]]:
    attributes = value.attributes if isinstance(value, _Record) else {}
    return [(str(name), part) for name, part in attributes.items()]


class _Inert:
    """Takes the place of a module; its state is kept as plain attributes."""


_CLASSES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.decoder.Decoder",
    "dall_e.decoder.DecoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.upsampling.Upsample",
)


def read_dalle_module(path: Path) -> dict[str, Tensor]:
    """Return the parameters of a pickled DALL-E encoder or decoder, by name.

    Raises:
        CheckpointError: The file is missing, damaged, or names other classes.
    """
    stubs = {name: type(name.rpartition(".")[2], (_Inert,), {}) for name in _CLASSES}
    if is_archive(path):
        with open_archive(path):  # checks its size
            pass
    try:
        with torch.serialization.safe_globals([(stub, name) for name, stub in stubs.items()]):
            module = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what it likes on bad bytes
        raise CheckpointError(
            f"{path} is damaged, or no encoder or decoder of DALL-E: {str(error)[:200]}"
        ) from error
    with reading(path, CheckpointError):
        found = {name: tensor.detach() for name, tensor in _walk(module, _inside_module)}
    if not found:
        raise CheckpointError(f"{path} holds no parameters: expected a module of DALL-E's")
    check_tensors(path, found)
    return found


def _inside_module(value: Any) -> Iterable[tuple[str, Any]]:
    state = getattr(value, "__dict__", {})
    parts = [state.get(kind) for kind in ("_parameters", "_modules")]
    found = [(str(n), p) for part in parts if isinstance(part, dict) for n, p in part.items()]
    return [(name, part) for name, part in found if isinstance(part, Tensor | _Inert)]
