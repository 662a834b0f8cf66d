"""The record index: what a reader found in large data, in columns on disk, made once.

Data of fewer than `columns.ROWS` records stays in memory. Larger data is written to the cache
folder as it is read, and later starts map that. An index belongs to the settings of one source;
it is made again when a file that it came from has another size or time.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_ISDIR
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

import triptych
from triptych.core.errors import DataError
from triptych.core.files import refusal, write_json
from triptych.core.reading import MAX_DATA_BYTES, read_json_object
from triptych.data.cache import cache_folder, cache_key, log, one_at_a_time
from triptych.data.columns import RECORDS, SKIPPED, Columns, ColumnWriter
from triptych.data.records import Record, SelectedRecords, ShardRuns, present_fields
from triptych.data.skips import Skipped
from triptych.data.storage import NUM_REQUESTS, is_url, url_facts

VERSION = 3
ABOUT_FILE, LOCK_FILE = "about.json", ".lock"
NUM_BUCKETS = 64
FileFacts = list[list[Any]]  # path, size in bytes, time in nanoseconds


class RecordIndex(Sequence[Record]):
    """The records of an index: each is made where it is asked for.

    Args:
        folder: Of the index.
        about: What `about.json` in it says.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self._folder, self._about = folder, about
        self._rows = Columns(folder / about["records"], RECORDS)
        # (joins, 2): a record, and the first of its image_id, which has another file
        self._joins: NDArray[np.int64] = np.load(folder / about["joins"], mmap_mode="r")
        sizes = about["shard_sizes"]
        self.shard_sizes = None if sizes is None else tuple(sizes)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return SelectedRecords(self, range(len(self))[index])
        row = range(len(self))[index]
        return self._joined(row, self._rows[row])

    def __iter__(self) -> Iterator[Record]:
        if len(self._joins) == 0:
            return iter(self._rows)
        return (self._joined(row, record) for row, record in enumerate(self._rows))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._folder, self._about)

    def raw_rows(self, stride: int = 1) -> Iterator[tuple[Any, ...]]:
        """Yield every `stride`-th row; see `columns.raw_rows`."""
        return self._rows.raw_rows(stride)

    @property
    def kinds(self) -> dict[tuple[str, ...], int]:
        """How many records have which fields, and no others; see `kinds_of`."""
        return {tuple(names): count for names, count in self._about["kinds"]}

    def _joined(self, row: int, record: Record) -> Record:
        if len(self._joins) == 0:
            return record
        found = int(np.searchsorted(self._joins[:, 0], row))
        if found == len(self._joins) or self._joins[found, 0] != row:
            return record
        first = self._rows[int(self._joins[found, 1])].image
        return replace(record, first_image=first)


@dataclass(frozen=True, slots=True)
class IndexedRecords:
    """What an index holds.

    Attributes:
        records: The usable records.
        skipped: The entries that are not usable.
        parts: The splits that are read though none was asked for.
    """

    records: RecordIndex
    skipped: Sequence[Skipped]
    parts: tuple[str, ...]


class IndexReady(Exception):  # noqa: N818 - tells the reader to stop, no error
    """Another process has made the index in the meantime."""

    def __init__(self, found: IndexedRecords) -> None:
        super().__init__()
        self.found = found


class IndexStore:
    """The place of one source's index in the cache folder.

    Args:
        name: What messages call the source.
        settings: All that decides what its reader finds, but for the content of its files.
        list_files: Returns the files and folders that it is read from.
        lists_again: Whether they are listed at each start: a folder of a million images is not,
            since its own time and those of the folders in it show what comes and goes.
    """

    def __init__(
        self,
        name: str,
        settings: dict[str, Any],
        list_files: Callable[[], list[str]],
        lists_again: bool,
    ) -> None:
        self.name = name
        self._version = [VERSION, triptych.__version__]
        self._list_files, self._lists_again = list_files, lists_again
        self.folder = cache_folder() / "index" / cache_key(settings)

    def find(self) -> IndexedRecords | None:
        """Return the index if it is there and its sources are as they were."""
        try:
            about = read_json_object(self.folder / ABOUT_FILE, max_bytes=MAX_DATA_BYTES)
        except DataError:
            return None
        if about.get("version") != self._version:
            return None
        known: FileFacts = about["files"]
        names = self._list_files() if self._lists_again else [path for path, *_ in known]
        now = file_facts(names)
        if now != known:
            changed = next((new[0] for new in now if new not in known), self.name)
            log.warning("%s changed since its index was made: reading it again", changed)
            return None
        try:
            records = RecordIndex(self.folder, about)
            skipped = Columns(self.folder / about["skipped"], SKIPPED)
        except (OSError, ValueError) as error:  # pyarrow's errors are among these
            log.warning("the index of %s is damaged (%s): making it again", self.name, error)
            return None
        return IndexedRecords(records, skipped, tuple(about["parts"]))

    def remove(self) -> None:
        """Make the index count no more; processes that read it may go on."""
        (self.folder / ABOUT_FILE).unlink(missing_ok=True)

    def writer(self) -> IndexWriter:
        """Return what fills the index; use it as a context."""
        return IndexWriter(self)

    def commit(self, files: FileFacts, written: dict[str, Path], about: dict[str, Any]) -> None:
        """Put files in their place, then say that they are valid, then remove older ones."""
        generation = cache_key(files)[:12]
        placed = {}
        for kind, path in written.items():
            placed[kind] = f"{kind}-{generation}{path.suffix}"
            path.replace(self.folder / placed[kind])
        whole = {"version": self._version, "files": files, **placed, **about}
        write_json(self.folder / ABOUT_FILE, whole)
        for path in self.folder.glob("*-*.*"):
            if path.name not in placed.values() and not path.name.startswith("."):
                path.unlink(missing_ok=True)

    def facts(self) -> FileFacts:
        """Return the files that the source is read from, as they are now."""
        return file_facts(self._list_files())


class IndexWriter:
    """Writes records and skipped entries as they are read; nothing is made before the first.

    Only one process at a time makes an index. One that waited finds it made: `IndexReady`.
    """

    def __init__(self, store: IndexStore) -> None:
        self._store = store
        self._stack = ExitStack()
        self._kinds: Counter[tuple[str, ...]] = Counter()
        self._runs = ShardRuns()
        self.num_records = 0
        self._paths: dict[str, Path] = {}
        self.is_started = False
        self.is_refused = False

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            with suppress(OSError):  # a full disk does not take the end of a temporary file either
                self._stack.close()
        finally:
            for path in self._paths.values():
                path.unlink(missing_ok=True)

    def write(self, records: Sequence[Record], skipped: Sequence[Skipped]) -> bool:
        """Add entries; return whether they are on disk now, so that memory may drop them.

        Raises:
            IndexReady: Another process made the index while this one waited for it.
            DataError: The disk is full, or fails.
        """
        if self.is_refused or not (self.is_started or self._start()):
            return False
        try:
            self._records.write(records)
            self._skipped.write(skipped)
            self._joins.add(records)
        except OSError as error:
            raise self._cannot_write(error) from error
        self._runs.add(records)
        self.num_records += len(records)
        self._kinds.update(map(present_fields, records))
        return True

    def finish(self, parts: Sequence[str]) -> IndexedRecords:
        """End the files, put them in their place, and return what they hold.

        Raises:
            DataError: The disk is full, or fails.
        """
        try:
            self._records.close()
            self._skipped.close()
            np.save(self._paths["joins"], self._joins.found())
            about = {
                "source": self._store.name,
                "num_records": self.num_records,
                "kinds": [[names, count] for names, count in self._kinds.items()],
                "shard_sizes": self._runs.sizes,
                "parts": list(parts),
            }
            self._store.commit(self._files, self._paths, about)
        except OSError as error:
            raise self._cannot_write(error) from error
        found = self._store.find()
        if found is None:
            raise DataError(f"{self._store.name} changed while it was read: start again")
        log.warning("%s: indexed %s records", self._store.name, f"{self.num_records:,}")
        return found

    def _start(self) -> bool:
        folder, what = self._store.folder, f"index of {self._store.name}"
        try:
            self._stack.enter_context(one_at_a_time(folder / LOCK_FILE, what))
        except OSError as error:
            message = "%s: no index can be kept in %s (%s): its records stay in memory"
            log.warning(message, self._store.name, folder, error.strerror)
            self.is_refused = True
            return False
        found = self._store.find()
        if found is not None:
            raise IndexReady(found)
        log.warning("%s: making an index in %s, once", self._store.name, folder)
        self._files = self._store.facts()
        ends = {"records": "arrow", "skipped": "arrow", "joins": "npy"}
        self._paths = {k: folder / f".{k}.tmp{os.getpid()}.{end}" for k, end in ends.items()}
        self._records = ColumnWriter(self._paths["records"], RECORDS)
        self._skipped = ColumnWriter(self._paths["skipped"], SKIPPED)
        self._joins = self._stack.enter_context(_Joins(folder))
        self.is_started = True
        return True

    def _cannot_write(self, error: OSError) -> DataError:
        where = f"the index of {self._store.name} to {self._store.folder}"
        way = "give the command again (TRIPTYCH_CACHE names the folder; index never makes none)"
        return DataError(refusal(where, error, way))


class _Joins:
    """Finds the records that have another image than the first of their `image_id`.

    Hashes lie in files, by the hash of the id, so that memory holds one file's at a time.
    """

    DTYPE = np.dtype([("key", np.int64), ("image", np.int64), ("row", np.int64)])

    def __init__(self, folder: Path) -> None:
        self._folder, self._num_rows = folder, 0
        self._stack = ExitStack()
        self._buckets: list[Any] = []

    def __enter__(self) -> _Joins:
        for _ in range(NUM_BUCKETS):
            file = tempfile.TemporaryFile(dir=self._folder)
            self._buckets.append(self._stack.enter_context(file))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, records: Sequence[Record]) -> None:
        """Go on with some records."""
        rows = np.array(
            [
                (hash(record.image_id), hash(record.image), self._num_rows + number)
                for number, record in enumerate(records)
                if record.image is not None and record.image_id is not None
            ],
            dtype=self.DTYPE,
        )
        self._num_rows += len(records)
        for number, file in enumerate(self._buckets):
            file.write(rows[rows["key"] % NUM_BUCKETS == number].tobytes())

    def found(self) -> NDArray[np.int64]:
        """Return (joins, 2), sorted: a record, and the first of its image_id."""
        parts = [self._of_bucket(file) for file in self._buckets]
        joins = np.concatenate(parts)
        return joins[np.argsort(joins[:, 0])]

    def _of_bucket(self, file: Any) -> NDArray[np.int64]:
        file.seek(0)
        rows = np.frombuffer(file.read(), dtype=self.DTYPE)
        rows = rows[np.lexsort((rows["row"], rows["key"]))]
        starts = np.ones(len(rows), dtype=bool)
        starts[1:] = rows["key"][1:] != rows["key"][:-1]
        first = np.flatnonzero(starts)[np.cumsum(starts) - 1]
        differs = rows["image"] != rows["image"][first]
        return np.stack([rows["row"][differs], rows["row"][first[differs]]], axis=1)


def file_facts(paths: Sequence[str]) -> FileFacts:
    """Return path, size and time of files and folders; size -1 of what is not there."""
    if any(map(is_url, paths)):
        with ThreadPoolExecutor(NUM_REQUESTS) as pool:
            return list(pool.map(_facts, paths))
    return [_facts(path) for path in paths]


def _facts(path: str) -> list[Any]:
    if is_url(path):
        return [path, *url_facts(path)]
    try:
        stat = Path(path).stat()
    except OSError:
        return [path, -1, 0]
    return [path, 0 if S_ISDIR(stat.st_mode) else stat.st_size, stat.st_mtime_ns]
