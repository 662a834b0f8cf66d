"""Parquet tables: open ones, and the row groups of images that were read last."""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from typing import Any

from triptych.core.errors import DataError
from triptych.data.storage import is_url, open_file

MAX_TABLES = 64
MAX_CELL_BYTES = 256 * 2**20  # of images in row groups that a process keeps; at least one group
_CELL = re.compile(r"(.+)@(\d+)\[(\d+)\]")


def cell_name(column: str, group: int, row: int) -> str:
    """Return how a record names a cell: column, row group, and row in the group."""
    return f"{column}@{group}[{row}]"


def open_table(path: str) -> Any:
    """Return a `pyarrow.parquet.ParquetFile`.

    Raises:
        DataError: It is no parquet table.
        OSError: The file is missing or cannot be read.
    """
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        if is_url(path):
            return ParquetFile(open_file(path))
        return ParquetFile(path, memory_map=True)
    except ArrowInvalid as error:
        raise DataError(f"{path}: is not a parquet table: {error}") from error


class _Tables:
    def __init__(self) -> None:
        self._tables: OrderedDict[str, Any] = OrderedDict()
        self._groups: OrderedDict[tuple[str, str, int], Any] = OrderedDict()
        self.lock = threading.Lock()

    def cell(self, path: str, column: str, group: int, row: int) -> bytes | None:
        with self.lock:
            return self._group(path, column, group)[row].as_py()  # type: ignore[no-any-return]

    def _group(self, path: str, column: str, group: int) -> Any:
        key = (path, column, group)
        if key not in self._groups:
            cells = self._table(path).read_row_group(group, columns=[column], use_threads=False)
            cells = cells.column(0).combine_chunks()
            self._groups[key] = cells.field(0) if "." in column else cells
            self._make_room()
        self._groups.move_to_end(key)
        return self._groups[key]

    def _make_room(self) -> None:
        while len(self._groups) > 1 and self._num_bytes() > MAX_CELL_BYTES:
            self._groups.popitem(last=False)

    def _num_bytes(self) -> int:
        return sum(int(cells.nbytes) for cells in self._groups.values())

    def _table(self, path: str) -> Any:
        if path not in self._tables:
            self._tables[path] = open_table(path)
            while len(self._tables) > MAX_TABLES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(path)
        return self._tables[path]


_tables = _Tables()


def _renew_locks() -> None:
    """In a forked process: a thread of the parent may have held the lock."""
    _tables.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


def read_cell(path: str, member: str) -> bytes:
    """Return the bytes in a cell that `cell_name` named; none where it is empty.

    Raises:
        DataError: The name is none, or the table has no such cell.
        OSError: The file is missing or cannot be read.
    """
    found = _CELL.fullmatch(member)
    if found is None:
        raise DataError(f"{path}: {member!r} names no cell")
    column, group, row = found.groups()
    return _tables.cell(path, column, int(group), int(row)) or b""
