"""Records in columns: Arrow files that are mapped into memory, and records as views into them.

A row is made a Python object only where it is asked for, so that a process holds none of them,
and processes on one machine share the pages of the file.
"""

from __future__ import annotations

import json
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np

from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped

ROWS = 65_536
"""Rows of a batch in the file, but for the last: what a process holds while a file is written."""

T = TypeVar("T")

_REST = (
    *("question", "answers", "question_type", "answer_type", "ocr_words", "object_words"),
    *("phrase", "box", "statement", "premise", "hypothesis", "label", "video", "domain"),
    "answers_weight",
)
"""Fields that share the column `rest`, as JSON: few kinds of data have them."""

_TUPLES = frozenset({"answers", "ocr_words", "object_words", "box"})
_SOURCES = ("codes", "mask")  # files beside the image, in `rest` as well
_SAME = "\0"  # in the column `image_id`: it is the image's own name


@dataclass(frozen=True, slots=True)
class Layout(Generic[T]):
    """How a kind of row is laid out.

    Attributes:
        names: Of the columns.
        numbers: Those that hold whole numbers; the others hold texts.
        split: Turns a row into the values of its columns.
        join: The other way round.
    """

    names: tuple[str, ...]
    numbers: frozenset[str]
    split: Callable[[T], tuple[Any, ...]]
    join: Callable[[tuple[Any, ...]], T]


def _split_record(record: Record) -> tuple[Any, ...]:
    image = record.image
    rest: dict[str, Any] = {}
    for name in _REST:
        value = getattr(record, name)
        if value is not None and value != ():
            rest[name] = value
    if record.images:
        rest["images"] = [_plain(source) for source in record.images]
    for name in _SOURCES:
        source = getattr(record, name)
        if source is not None:
            rest[name] = _plain(source)
    if image is not None and image.raw is not None:
        rest["raw"] = image.raw
    own_name = None if image is None else str(image)
    return (
        record.record_id,
        None if image is None else image.path,
        None if image is None else image.offset,
        None if image is None else image.size,
        None if image is None else image.member,
        _SAME if record.image_id is not None and record.image_id == own_name else record.image_id,
        record.caption,
        record.text,
        json.dumps(rest) if rest else None,
    )


def _join_record(values: tuple[Any, ...]) -> Record:
    record_id, path, offset, size, member, image_id, caption, text, rest = values
    fields: dict[str, Any] = {}
    if rest is not None:
        fields = json.loads(rest)
        for name in _TUPLES & fields.keys():
            fields[name] = tuple(fields[name])
        if "images" in fields:
            fields["images"] = tuple(ImageSource(*source) for source in fields["images"])
        for name in _SOURCES:
            if name in fields:
                fields[name] = ImageSource(*fields[name])
    raw = fields.pop("raw", None)
    image = None if path is None else ImageSource(path, offset, size, member, raw)
    return Record(
        record_id=record_id,
        image=image,
        image_id=str(image) if image_id == _SAME else image_id,
        caption=caption,
        text=text,
        **fields,
    )


def _plain(source: ImageSource) -> list[Any]:
    plain = [source.path, source.offset, source.size, source.member]
    return plain if source.raw is None else [*plain, source.raw]


def _split_skipped(entry: Skipped) -> tuple[Any, ...]:
    return entry.kind.value, entry.where, entry.message, entry.record_id


def _join_skipped(values: tuple[Any, ...]) -> Skipped:
    return Skipped(SkipKind(values[0]), *values[1:])


RECORDS: Layout[Record] = Layout(
    ("record_id", "image", "offset", "size", "member", "image_id", "caption", "text", "rest"),
    frozenset({"offset", "size"}),
    _split_record,
    _join_record,
)
SKIPPED: Layout[Skipped] = Layout(
    ("kind", "where", "message", "record_id"),
    frozenset(),
    _split_skipped,
    _join_skipped,
)


class ColumnWriter(Generic[T]):
    """Writes rows to a file, a batch at a time.

    Args:
        path: The file; it is whole once `close` has returned.
        layout: Of the rows.
        about: Facts that the file carries beside them.
    """

    def __init__(self, path: Path, layout: Layout[T], about: dict[str, str] | None = None) -> None:
        import pyarrow as pa  # here: small data does without it

        self._arrow, self._layout = pa, layout
        # Binary, not string: names of files may hold bytes that are not UTF-8.
        types = [pa.int64() if name in layout.numbers else pa.binary() for name in layout.names]
        self._schema = pa.schema(list(zip(layout.names, types, strict=True)), metadata=about or {})
        self._sink = pa.OSFile(str(path), "wb")
        self._file = pa.ipc.new_file(self._sink, self._schema)

    def write(self, rows: Sequence[T]) -> None:
        """Add some rows, in batches that Arrow can hold."""
        for start in range(0, len(rows), ROWS):
            self._write_batch(rows[start : start + ROWS])

    def _write_batch(self, rows: Sequence[T]) -> None:
        columns = zip(*map(self._layout.split, rows), strict=True)
        arrays = [
            self._arrow.array(
                values if field.name in self._layout.numbers else list(map(_encoded, values)),
                type=field.type,
            )
            for values, field in zip(columns, self._schema, strict=True)
        ]
        if not all(isinstance(array, self._arrow.Array) for array in arrays):  # above 2 GiB
            self._write_batch(rows[: len(rows) // 2])
            self._write_batch(rows[len(rows) // 2 :])
            return
        self._file.write_batch(self._arrow.record_batch(arrays, schema=self._schema))

    def close(self) -> None:
        """End the file."""
        self._file.close()
        self._sink.close()


def _encoded(value: str | None) -> bytes | None:
    return None if value is None else value.encode("utf-8", "surrogatepass")


_NUMBER, _OFFSETS = struct.Struct("<q"), struct.Struct("<ii")


def _buffer_starts(array: Any, address: int) -> tuple[int, int, int]:
    """Return where an array's bits, offsets and values begin after an address; -1 for none."""
    assert array.offset == 0, "a whole batch begins at its first row"
    bits, *others = (-1 if b is None else b.address - address for b in array.buffers())
    return bits, others[0] if len(others) == 2 else -1, others[-1]


class Columns(Sequence[T]):
    """The rows of a file, which stays on disk.

    Args:
        file: The file, or its bytes.
        layout: Of the rows.
    """

    def __init__(self, file: Path | bytes, layout: Layout[T]) -> None:
        import pyarrow as pa

        self._source, self._layout, self._arrow = file, layout, pa
        opened = pa.BufferReader(file) if isinstance(file, bytes) else pa.memory_map(str(file))
        whole = opened.read_buffer(opened.size())
        self._bytes, self._file = memoryview(whole), pa.ipc.open_file(whole)
        self.about = {k.decode(): v.decode() for k, v in (self._file.schema.metadata or {}).items()}
        self._is_number = [name in layout.numbers for name in layout.names]
        sizes, starts = [], []
        for batch in map(self._file.get_batch, range(self._file.num_record_batches)):
            sizes.append(batch.num_rows)
            starts.append([_buffer_starts(array, whole.address) for array in batch.columns])
        self._starts = [0, *accumulate(sizes)]
        # (batches, columns, 3): where in the file the buffers of each column begin
        self._buffers = np.array(starts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(index)
        batch = bisect_right(self._starts, position) - 1
        row = position - self._starts[batch]
        columns = zip(self._buffers[batch].tolist(), self._is_number, strict=True)
        return self._joined([self._value(row, *column) for column in columns])

    def __iter__(self) -> Iterator[T]:
        return map(self._joined, self.raw_rows())

    def raw_rows(self, stride: int = 1) -> Iterator[tuple[Any, ...]]:
        """Yield every `stride`-th row as the file holds it, with texts as bytes."""
        for batch, first in enumerate(self._starts[:-1]):
            table = self._file.get_batch(batch)
            begin = -first % stride
            if stride > 1:
                table = table.take(self._arrow.array(np.arange(begin, table.num_rows, stride)))
            # In pieces: the values of a whole batch would be a hundred megabytes.
            for start in range(0, table.num_rows, 1024):
                columns = [array.to_pylist() for array in table.slice(start, 1024).columns]
                yield from zip(*columns, strict=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._source, self._layout)

    def _value(self, row: int, buffers: list[int], is_number: bool) -> Any:
        """Return a cell from the buffers: five times as fast as through pyarrow, with no objects.

        They are, as Arrow lays them out: a bit a row, set where there is a value; for binary
        columns where each value begins and ends (int32); the values.
        """
        bits, offsets, values = buffers
        if bits >= 0 and not self._bytes[bits + (row >> 3)] >> (row & 7) & 1:
            return None
        if is_number:
            return _NUMBER.unpack_from(self._bytes, values + 8 * row)[0]
        start, end = _OFFSETS.unpack_from(self._bytes, offsets + 4 * row)
        return bytes(self._bytes[values + start : values + end])

    def _joined(self, values: Sequence[Any]) -> T:
        return self._layout.join(
            tuple(v.decode("utf-8", "surrogatepass") if isinstance(v, bytes) else v for v in values)
        )


def raw_rows(records: Sequence[Record], stride: int = 1) -> Iterator[tuple[Any, ...]]:
    """Yield every `stride`-th record as a row of `RECORDS`, with texts as bytes.

    An index gives its own, ten times as fast as records would be made of them.
    """
    if hasattr(records, "raw_rows"):
        yield from records.raw_rows(stride)
        return
    for record in islice(records, 0, None, stride):
        row = _split_record(record)
        yield tuple(_encoded(value) if isinstance(value, str) else value for value in row)
