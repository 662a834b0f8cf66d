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
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from triptych.core.errors import CheckpointError

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


def is_torchscript(path: Path) -> bool:
    """Say whether a file is a TorchScript archive: a zip with a constants.pkl."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(PurePosixPath(name).name == "constants.pkl" for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return the parameters and buffers of a TorchScript archive by dotted name.

    Raises:
        CheckpointError: The archive is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
            root = names[0].removesuffix("/data.pkl")
            top = _Reader(io.BytesIO(archive.read(names[0])), archive, root).load()
            return dict(_tensors(top, ""))
    except Exception as error:  # anything can be wrong with foreign bytes
        raise CheckpointError(f"{path} is a damaged TorchScript archive: {error!r}") from error


def _rebuild(
    flat: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    return flat.as_strided(tuple(size), tuple(stride), offset)


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, _Record):
        for attribute, inner in value.attributes.items():
            yield from _tensors(inner, f"{name}.{attribute}" if name else str(attribute))


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
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    stubs = {name: type(name.rpartition(".")[2], (_Inert,), {}) for name in _CLASSES}
    try:
        with torch.serialization.safe_globals([(stub, name) for name, stub in stubs.items()]):
            module = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged, or no encoder or decoder of DALL-E: {str(error)[:200]}"
        ) from error
    found = dict(_parameters(module, ""))
    if not found:
        raise CheckpointError(f"{path} holds no parameters: expected a module of DALL-E's")
    return found


def _parameters(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    state = getattr(module, "__dict__", {})
    for name, parameter in (state.get("_parameters") or {}).items():
        if isinstance(parameter, Tensor):
            yield f"{prefix}{name}", parameter.detach()
    for name, child in (state.get("_modules") or {}).items():
        yield from _parameters(child, f"{prefix}{name}.")
