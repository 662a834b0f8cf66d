"""Tables of parquet and Arrow: their rows, and the cells of images that were read last.

Both lie in groups: the row groups of a parquet file, which are decoded whole, and the record
batches of an Arrow file, which are views into the mapped file.
"""

from __future__ import annotations

import os
import re
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from triptych.core.errors import DataError
from triptych.core.reading import GIB, check_regular
from triptych.data.storage import is_url, open_file

PARQUET, ARROW = ".parquet", ".arrow"
MAX_TABLES = 64
MAX_CELL_BYTES = 256 * 2**20  # of images in row groups that a process keeps; at least one group
ROWS_AT_ONCE = 4096
MAX_GROUP_ROWS = 20_000_000
MAX_GROUP_BYTES = 4 * GIB  # without compression
_CELL = re.compile(r"(.+)@(\d+)\[(\d+)\]")


class Table(ABC):
    """A table on disk. A column is named as in its schema; a part of a struct as `column.part`.

    Attributes:
        schema: The `pyarrow.Schema`.
        num_groups: Groups of rows.
    """

    schema: Any
    num_groups: int

    @abstractmethod
    def num_rows(self, group: int) -> int:
        """Return the rows of a group."""

    @abstractmethod
    def rows(self, group: int, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows of a group as Python values, a bounded number at a time."""

    @abstractmethod
    def is_full(self, group: int, column: str) -> bool:
        """Return whether it is known, without reading it, that a column has no empty cell."""

    @abstractmethod
    def _column(self, group: int, column: str) -> Any:
        """Return a column of a group, of a struct with at least the named part."""

    def cells(self, group: int, column: str) -> Any:
        """Return a column of a group as an array; of a column of lists, all their items in turn."""
        import pyarrow.compute as pc

        array, part = self._column(group, column), column.partition(".")[2]
        items = array.flatten() if is_list(array.type) else array
        return pc.struct_field(items, part) if part else items

    def lengths(self, group: int, column: str) -> Any:
        """Return how many items each cell of a column of lists has, (rows,) int64."""
        import pyarrow.compute as pc

        counts = pc.list_value_length(self._column(group, column)).fill_null(0)
        return counts.cast("int64").to_numpy(zero_copy_only=False)


class _ParquetTable(Table):
    def __init__(self, path: str) -> None:
        from pyarrow.parquet import ParquetFile

        if is_url(path):
            self._file = ParquetFile(open_file(path))
        else:
            self._file = ParquetFile(path, memory_map=True)
        self.schema = self._file.schema_arrow
        self.num_groups = self._file.num_row_groups
        for number in range(self.num_groups):
            _check_group(self._file.metadata.row_group(number), f"{path}: row group {number}")

    def num_rows(self, group: int) -> int:
        return int(self._file.metadata.row_group(group).num_rows)

    def rows(self, group: int, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        options = {"row_groups": [group], "columns": list(columns), "use_threads": False}
        for batch in self._file.iter_batches(ROWS_AT_ONCE, **options):
            yield batch.to_pylist()

    def is_full(self, group: int, column: str) -> bool:
        about = self._file.metadata.row_group(group)
        for number in range(about.num_columns):
            found = about.column(number)
            if found.path_in_schema == column:
                counts = found.statistics
                return bool(counts and counts.has_null_count and counts.null_count == 0)
        return False

    def _column(self, group: int, column: str) -> Any:
        top = column.partition(".")[0]
        name = top if is_list(self.schema.field(top).type) else column
        found = self._file.read_row_group(group, columns=[name], use_threads=False)
        return found.column(0).combine_chunks()


class _ArrowTable(Table):
    """The record batches of Arrow's stream or file format, mapped into memory."""

    def __init__(self, path: str) -> None:
        import pyarrow as pa

        if is_url(path):
            raise DataError(f"{path}: Arrow files are mapped into memory: copy it to a disk first")
        file = pa.memory_map(path)
        is_file = file.read(len(_ARROW_MAGIC)) == _ARROW_MAGIC
        file.seek(0)
        if is_file:
            opened = pa.ipc.open_file(file)
            self._batches = [opened.get_batch(n) for n in range(opened.num_record_batches)]
        else:
            opened = pa.ipc.open_stream(file)
            self._batches = list(opened)
        for batch in self._batches:  # a damaged offset would lead out of the file, and end Python
            batch.validate(full=True)
        self.schema = opened.schema
        self.num_groups = len(self._batches)

    def num_rows(self, group: int) -> int:
        return int(self._batches[group].num_rows)

    def rows(self, group: int, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        batch = self._batches[group].select(list(columns))
        for start in range(0, batch.num_rows, ROWS_AT_ONCE):
            yield batch.slice(start, ROWS_AT_ONCE).to_pylist()

    def is_full(self, group: int, column: str) -> bool:
        return bool(self.cells(group, column).null_count == 0)

    def _column(self, group: int, column: str) -> Any:
        return self._batches[group].column(column.partition(".")[0])


_ARROW_MAGIC = b"ARROW1"


def is_list(kind: Any) -> bool:
    """Return whether an Arrow type is one of lists."""
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind)  # type: ignore[no-any-return]


def cell_name(column: str, group: int, row: int) -> str:
    """Return how a record names a cell: column, group, and row (or item of a list) in the group."""
    return f"{column}@{group}[{row}]"


def open_table(path: str) -> Table:
    """Return the table in a file: Arrow's by the suffix `.arrow`, or else parquet's.

    Raises:
        DataError: It is no such table.
        OSError: The file is missing or cannot be read.
    """
    from pyarrow import ArrowException

    if not is_url(path):
        check_regular(path)
    is_arrow = path.endswith(ARROW)
    try:
        return _ArrowTable(path) if is_arrow else _ParquetTable(path)
    except (ArrowException, OSError) as error:  # of broken bytes, either
        kind = "an Arrow" if is_arrow else "a parquet"
        raise DataError(f"{path}: is not {kind} table: {error}") from error


def _check_group(group: Any, where: str) -> None:
    """Refuse a group that would not fit into memory: some bytes can stand for any number of rows.

    Raises:
        DataError: It says so itself.
    """
    if not 0 <= group.num_rows <= MAX_GROUP_ROWS:
        raise DataError(
            f"{where}: has {group.num_rows:,} rows; at most {MAX_GROUP_ROWS:,} are read"
        )
    if not 0 <= group.total_byte_size <= MAX_GROUP_BYTES:
        raise DataError(
            f"{where}: has {group.total_byte_size:,} bytes; at most {MAX_GROUP_BYTES:,} are read"
        )


class _Tables:
    def __init__(self) -> None:
        self._tables: OrderedDict[str, Table] = OrderedDict()
        self._groups: OrderedDict[tuple[str, str, int], Any] = OrderedDict()
        self.lock = threading.Lock()

    def cell(self, path: str, column: str, group: int, row: int) -> bytes | None:
        with self.lock:
            return self._group(path, column, group)[row].as_py()  # type: ignore[no-any-return]

    def _group(self, path: str, column: str, group: int) -> Any:
        key = (path, column, group)
        if key not in self._groups:
            self._groups[key] = self._table(path).cells(group, column)
            self._make_room()
        self._groups.move_to_end(key)
        return self._groups[key]

    def _make_room(self) -> None:
        while len(self._groups) > 1 and self._num_bytes() > MAX_CELL_BYTES:
            self._groups.popitem(last=False)

    def _num_bytes(self) -> int:
        return sum(int(cells.nbytes) for cells in self._groups.values())

    def _table(self, path: str) -> Table:
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
