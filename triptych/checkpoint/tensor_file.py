"""Safetensors files: written and hashed in one pass, and read whole.

The library's own `save_file` makes files that only their owner may read, and what it wrote would
have to be read again for its hash. The format is a header (the length of the JSON, 8 bytes; the
JSON) and then the tensors' bytes: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from triptych.core.errors import CheckpointError
from triptych.core.reading import check_regular, reading

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
"""What the format calls them."""

_UNPACKED, _UNPACKED_LEAST = 4, 1 << 26
_CHUNK = 1 << 24
"""Bytes that are hashed and written at a time; other threads run meanwhile."""


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    pause: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write a safetensors file and wait until it is on the disk.

    Args:
        path: The new file; its mode is what the umask leaves.
        tensors: Plain ones by name, on any device; each is copied to the CPU in its turn.
        metadata: Kept in the header.
        pause: Called before each chunk; what it raises ends the writing.

    Returns:
        `size` in bytes and `sha256` of the file.

    Raises:
        OSError: The disk refuses.
        CheckpointError: A dtype that the format does not know.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    # widest first, so that every tensor begins at a multiple of its element size
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _name_of(name, tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    head = len(encoded).to_bytes(8, "little") + encoded
    digest = hashlib.sha256(head)
    with path.open("wb") as file:
        file.write(head)
        for name in order:
            for chunk in _chunks(tensors[name]):
                pause()
                digest.update(chunk)
                file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return {"size": len(head) + end, "sha256": digest.hexdigest()}


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file, whose tensors stay mapped to it.

    Returns:
        The tensors by name, on the CPU, and the metadata of the header.

    Raises:
        CheckpointError: It is no such file, truncated, or a weight is NaN or infinite.
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    check_tensors(path, tensors)
    return tensors, metadata


def check_layout(path: Path) -> None:
    """Raise a CheckpointError unless a safetensors file is as long as its header says.

    It reads the header alone, so that it takes no longer for a large file.
    """
    with _opened(path):
        pass


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with reading(path, CheckpointError):
        check_regular(path)
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged: {error}; copy it again") from error


def check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise a CheckpointError unless tensors of a file are plain, finite and as large as it.

    A few bytes can stand for a tensor of any size, all of whose elements are one number.

    Args:
        path: Their file, for the message and for its size.
        tensors: By name, on the CPU.
    """
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise CheckpointError(
                f"{path}: {name} is a sparse, quantized or empty tensor: store plain weights"
            )
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > room_for(path):
        raise CheckpointError(
            f"{path}: its tensors claim {claimed:,} bytes, far more than the file holds"
        )
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        if tensor.element_size() == 1:  # float8 has no minimum and maximum in torch
            tensor = tensor.float()
        if not all(bound.isfinite() for bound in tensor.aminmax()):  # both are NaN if any is
            raise CheckpointError(
                f"{path}: {name} holds NaN or infinite weights; the file is damaged, or training "
                "diverged before it was written"
            )


def room_for(path: Path) -> int:
    """Return how many bytes a file may unpack to: tied weights count twice, zeros compress well."""
    return _UNPACKED * path.stat().st_size + _UNPACKED_LEAST


def _name_of(name: str, dtype: torch.dtype) -> str:
    if dtype not in DTYPES:
        raise CheckpointError(f"cannot save {name}: safetensors has no {dtype}; convert it before")
    return DTYPES[dtype]


def _chunks(tensor: Tensor) -> Iterator[memoryview]:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        content = flat.view(torch.uint8).numpy().data
        yield from (content[at : at + _CHUNK] for at in range(0, len(content), _CHUNK))
