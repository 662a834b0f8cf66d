"""MATLAB's .mat files, level 5 ("v5" to "v7"), as arrays, texts, lists and dicts.

A file is a header of 128 bytes and a row of elements, each a tag (type, size) and its data, padded
to 8 bytes; a variable is an element of nested elements, as it is or compressed by zlib (MathWorks,
"MAT-File Format", chapter 1). Nothing in a file is run. Later files ("v7.3") are HDF5.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from triptych.core.errors import DataError
from triptych.core.reading import read_bytes, reading

HEADER_BYTES = 128
MATRIX, COMPRESSED, UTF8, UTF16, UTF32 = 14, 15, 16, 17, 18
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8"}
NUMBERS |= {13: "u8", UTF8: "u1", UTF16: "u2", UTF32: "u4"}
CELL, STRUCT, CHAR = 1, 2, 4
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4"}
CLASSES |= {14: "i8", 15: "u8"}
COMPLEX = 0x08
MAX_DEPTH = 32


class _BrokenError(ValueError):
    """The bytes are not what the format says."""


def load_mat(path: Path) -> dict[str, Any]:
    """Return the variables of a file.

    Returns:
        Each variable's value by its name. Numbers: an array of the file's shape, in column-major
        order. Characters: a str, or a list of them where there are several rows. A cell array: a
        list, column by column. A struct array: a list of dicts. Other classes (objects, sparse
        and complex arrays): None.

    Raises:
        DataError: The file cannot be read, is no .mat file of level 5, or is cut short.
    """
    with reading(path):
        data = read_bytes(path)
    if data[:8] == b"\x89HDF\r\n\x1a\n" or data[:19] == b"MATLAB 7.3 MAT-file":
        raise DataError(
            f"{path}: is a .mat file of version 7.3 (HDF5), and level 5 is read: write it again in "
            "MATLAB with save(..., '-v7')"
        )
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise DataError(
            f"{path}: is no .mat file of level 5: it begins with {data[:12]!r}. Download it again"
        )
    try:
        return dict(_variables(memoryview(data)[HEADER_BYTES:], order))
    except (_BrokenError, struct.error, zlib.error) as error:
        raise DataError(f"{path}: is broken or cut short: {error}. Download it again") from error


def _variables(data: memoryview, order: str) -> Iterator[tuple[str, Any]]:
    for kind, content in _elements(data, order):
        if kind == COMPRESSED:
            yield from _variables(memoryview(zlib.decompress(content)), order)
        elif kind == MATRIX:
            yield _matrix(content, order, 0)


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield the type and the data of each element."""
    position = 0
    while position < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, position)
        start, end = position + 8, position + 8 + size
        if kind >> 16:  # a small element: type and size in four bytes, the data in the next four
            kind, size = kind & 0xFFFF, kind >> 16
            start, end = position + 4, position + 4 + size
            position += 8
        else:
            position = end if kind == COMPRESSED else end + -size % 8
        if end > len(data):
            raise _BrokenError(f"an element of {size} bytes where {len(data) - start} are left")
        yield kind, data[start:end]


def _matrix(data: memoryview, order: str, depth: int) -> tuple[str, Any]:
    """Return the name and the value of a variable, a cell or a field."""
    if depth > MAX_DEPTH:
        raise _BrokenError(f"nests more than {MAX_DEPTH} deep")
    parts = list(_elements(data, order))
    if not parts:  # how an empty cell is written
        return "", np.zeros((0, 0))
    if len(parts) < 3:
        raise _BrokenError("a variable has no flags, size or name")
    flags = struct.unpack_from(f"{order}I", parts[0][1])[0]
    kind, is_complex = flags & 0xFF, bool(flags >> 8 & COMPLEX)
    shape = tuple(int(size) for size in _numbers(*parts[1], order))
    name = bytes(parts[2][1]).decode("latin-1")
    if min(shape, default=0) < 0:
        raise _BrokenError(f"variable {name!r} has the size {shape}")
    rest = parts[3:]
    if kind == CELL:
        return name, [_matrix(part, order, depth + 1)[1] for _, part in rest]
    if kind == STRUCT:
        return name, _structs(rest, shape, order, depth)
    if kind == CHAR and rest:
        return name, _texts(*rest[0], shape, order)
    if kind in CLASSES and rest and not is_complex:
        values = _numbers(*rest[0], order)
        if len(values) != np.prod(shape, dtype=np.int64):
            raise _BrokenError(f"variable {name!r} of size {shape} holds {len(values)} numbers")
        return name, values.astype(CLASSES[kind], copy=False).reshape(shape, order="F")
    return name, None


def _numbers(kind: int, data: memoryview, order: str) -> np.ndarray[Any, Any]:
    code = NUMBERS.get(kind)
    if code is None or len(data) % int(code[1]):
        raise _BrokenError(f"{len(data)} bytes are no numbers of type {kind}")
    return np.frombuffer(data, dtype=f"{order}{code}")


def _structs(
    parts: list[tuple[int, memoryview]], shape: tuple[int, ...], order: str, depth: int
) -> list[dict[str, Any]]:
    """Return the dicts of a struct array: a length, the names, then all fields of each."""
    if len(parts) < 2:
        raise _BrokenError("a struct has no field names")
    width = int(_numbers(*parts[0], order)[0]) if len(parts[0][1]) else 0
    text = bytes(parts[1][1])
    if width <= 0:
        return []
    names = [
        text[start : start + width].split(b"\0")[0].decode("latin-1")
        for start in range(0, len(text), width)
    ]
    count = int(np.prod(shape, dtype=np.int64))
    if len(parts) - 2 != count * len(names):
        raise _BrokenError(f"{count} structs of {len(names)} fields hold {len(parts) - 2} values")
    values = [_matrix(part, order, depth + 1)[1] for _, part in parts[2:]]
    return [
        dict(zip(names, values[i * len(names) : (i + 1) * len(names)], strict=True))
        for i in range(count)
    ]


def _texts(kind: int, data: memoryview, shape: tuple[int, ...], order: str) -> str | list[str]:
    if kind == UTF8:
        letters = np.array([ord(c) for c in bytes(data).decode("utf-8", "replace")], dtype="u4")
    else:
        letters = _numbers(kind, data, order)
    rows = shape[0] if shape else 0
    if rows * (len(letters) // max(rows, 1)) != len(letters):
        raise _BrokenError(f"{len(letters)} characters in {rows} rows")
    grid = letters.reshape(rows, -1, order="F") if rows else letters.reshape(0, 0)
    try:
        texts = ["".join(map(chr, row.tolist())) for row in grid]
    except (ValueError, OverflowError) as error:
        raise _BrokenError(f"a character that is none: {error}") from error
    return texts if len(texts) > 1 else "".join(texts)
