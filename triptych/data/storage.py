"""Bytes of files, near and far: slices of local files, and of URLs through fsspec.

Local files that are read in slices stay open, a bounded number of them. A request that fails is
repeated after longer and longer pauses; what still fails is an error, never a skipped sample: a
network that is down for a while must not change what a run trains on.
"""

from __future__ import annotations

import io
import os
import random
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from triptych.core.errors import DataError
from triptych.core.extras import import_extra
from triptych.core.files import placed
from triptych.core.reading import (
    MAX_DATA_BYTES,
    open_descriptor,
    open_regular,
    read_bytes,
    too_large,
)
from triptych.data.cache import cache_folder, cache_key, log, one_at_a_time

MAX_OPEN = 64  # files of a process
NUM_REQUESTS = 32  # to a server at a time
NUM_TRIES = 10  # a server that is down for less than about 20 s costs nothing but time
BLOCK_BYTES = 2**20
FETCHED_BYTES = 16 * 2**20  # of a request where a shard is fetched whole
VERSION_MARKS = ("ETag", "etag", "LastModified", "Last-Modified", "last_modified", "mtime")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 10.0
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)

R = TypeVar("R")
_chance = random.SystemRandom()  # not Python's own generator: a run saves and restores that


def is_url(path: str) -> bool:
    """Return whether a path is a URL: `s3://`, `https://`, `hf://` ..."""
    return _URL.match(path) is not None


class RemoteError(DataError):
    """A URL failed on every try."""


class _OpenFiles:
    """The local files that were read in slices last. Forked processes share their descriptors."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, int] = OrderedDict()
        self.lock = threading.Lock()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Return a slice of a file; less where the file ends before."""
        with self.lock:
            file = self._open(path)
            data = os.pread(file, size, offset)
            while len(data) < size:  # a read may stop early, such as at 2 GiB
                more = os.pread(file, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
            return data

    def _open(self, path: str) -> int:
        found = self._files.get(path)
        if found is not None:
            if os.path.samestat(os.fstat(found), os.stat(path)):  # noqa: PTH116 - 1 us, not 5
                self._files.move_to_end(path)
                return found
            os.close(self._files.pop(path))  # another file has the name now
        self._files[path] = found = open_descriptor(path)
        while len(self._files) > MAX_OPEN:
            os.close(self._files.popitem(last=False)[1])
        return found


_open_files = _OpenFiles()


def _renew_locks() -> None:
    """In a forked process: a thread of the parent may have held a lock."""
    _open_files.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


def read_slice(path: str, offset: int, size: int) -> bytes:
    """Return `size` bytes of a file or URL from `offset` on; of a file that ends before, less.

    Raises:
        OSError: The local file is missing or cannot be read; of URLs, FileNotFoundError alone.
        RemoteError: The URL failed on every try.
    """
    if size > MAX_DATA_BYTES:  # what a shard says of itself; memory is taken before a byte is read
        raise too_large(path, size, MAX_DATA_BYTES)
    if is_url(path):
        return _read_url(path, offset, size)
    if not hasattr(os, "pread"):  # Windows
        with open_regular(path) as file:
            file.seek(offset)
            return file.read(size)
    return _open_files.read(path, offset, size)


def read_whole(path: str, max_bytes: int = MAX_DATA_BYTES) -> bytes:
    """Return all bytes of a file or URL; errors are those of `read_slice`."""
    if not is_url(path):
        return read_bytes(path, max_bytes)
    system, name = _file_system(path)
    return _persistently(path, lambda: bytes(system.cat_file(name)))


def url_facts(url: str) -> tuple[int, str]:
    """Return the size of what a URL names, -1 where there is nothing, and a mark of its version.

    Raises:
        RemoteError: The URL failed on every try.
    """
    system, name = _file_system(url)
    system.invalidate_cache()
    try:
        info = _persistently(url, lambda: dict(system.info(name)))
    except FileNotFoundError:
        return -1, ""
    marks = (str(info[key]) for key in VERSION_MARKS if info.get(key) is not None)
    size = info.get("size")
    return -1 if size is None else int(size), next(marks, "")


def glob_urls(pattern: str) -> list[str]:
    """Return the URLs that a pattern of `*` and `?` fits, sorted.

    Raises:
        RemoteError: The listing failed on every try.
    """
    system, name = _file_system(pattern)
    found = _persistently(pattern, lambda: list(system.glob(name)))
    return sorted(str(system.unstrip_protocol(path)) for path in found)


class UrlFile(io.RawIOBase):
    """What a URL names as a file that can be read and moved in, a block at a time.

    Args:
        url: Of the file.

    Raises:
        DataError: It is not there, does not say its size, or failed on every try.
    """

    def __init__(self, url: str) -> None:
        self._url, self._offset = url, 0
        self.size, _ = url_facts(url)
        if self.size < 0:
            raise DataError(f"{url}: there is no such file, or the server does not say its size")
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self._offset

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset, and return it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self.size}[whence]
        self._offset = max(0, start + offset)
        return self._offset

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, or a part of it; return how many bytes."""
        number, start = divmod(self._offset, BLOCK_BYTES)
        if self._offset >= self.size:
            return 0
        piece = self._block(number)[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        self._offset += len(piece)
        return len(piece)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            first = number * BLOCK_BYTES
            size = min(BLOCK_BYTES, self.size - first)
            self._blocks[number] = read_slice(self._url, first, size)
            while len(self._blocks) > 4:  # texts lie beside headers: a few blocks in turn
                self._blocks.popitem(last=False)
        return self._blocks[number]


def open_file(path: str) -> BinaryIO:
    """Open a file or URL for reading."""
    if is_url(path):
        return io.BufferedReader(UrlFile(path))  # type: ignore[return-value]
    return open_regular(path)


def _read_url(url: str, offset: int, size: int) -> bytes:
    local = shard_cache.local(url)
    if local is not None:
        with suppress(FileNotFoundError):  # another process may have removed it just now
            return read_slice(local, offset, size)
    system, name = _file_system(url)

    def read() -> bytes:
        data = bytes(system.cat_file(name, start=offset, end=offset + size))
        if len(data) > size:
            raise DataError(
                f"{url}: the server ignores byte ranges: copy the shards, or serve "
                "them by one that knows ranges"
            )
        if len(data) < size:
            raise OSError(f"{len(data)} of {size} bytes came")
        return data

    return _persistently(url, read)


def _file_system(url: str) -> tuple[Any, str]:
    """Return what fsspec reads a URL with, and the URL's name in it."""
    fsspec = import_extra("fsspec", "remote", f"{url}: reading URLs")
    try:
        system, name = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url}: cannot be read: {error}") from error
    return system, str(name)


def _persistently(url: str, request: Callable[[], R]) -> R:
    """Return what a request gives; repeat it where it fails in a way that may pass."""
    pause = FIRST_PAUSE_S
    for number in range(1, NUM_TRIES + 1):
        try:
            return request()
        except DataError:
            raise
        except Exception as error:  # each protocol has its own
            if isinstance(error, FileNotFoundError) and _is_absent(error):
                raise
            what = f"{type(error).__name__}: {error}"
            if number == NUM_TRIES or not _may_pass(error):
                raise RemoteError(
                    f"{url}: failed {number} times, the last time with {what}. Check that the "
                    "address and your rights are right and that the server answers, then resume"
                ) from error
            log.warning("%s: try %d of %d failed (%s)", url, number, NUM_TRIES, what)
            time.sleep(pause * (0.5 + _chance.random() / 2))  # or all workers ask at once again
            pause = min(2 * pause, LONGEST_PAUSE_S)
    raise AssertionError("the last try returns or raises")


def _is_absent(error: FileNotFoundError) -> bool:
    """Return whether the server said so; fsspec reports any failed look over HTTP in this way."""
    cause = error.__cause__
    is_said = cause is None or isinstance(cause, FileNotFoundError)
    return is_said or getattr(cause, "status", None) in (404, 410)


def _may_pass(error: Exception) -> bool:
    status = getattr(error, "status", None)
    is_refusal = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
    return not is_refusal and not isinstance(error, PermissionError)


class ShardCache:
    """Whole shards that were fetched ahead, on disk: at most a set number, the newest.

    Processes on one machine share them. Nobody waits for a shard: what is not there yet is read by
    ranges, so what a run trains on does not depend on what the cache holds.
    """

    def __init__(self) -> None:
        self._ready: dict[str, str] = {}
        self._asked: dict[str, None] = {}
        self._waiting: deque[str] = deque()
        self._thread: threading.Thread | None = None
        self._keep = 0

    def local(self, url: str) -> str | None:
        """Return the path of a shard that was fetched."""
        return self._ready.get(url)

    def fetch(self, urls: Sequence[str]) -> None:
        """Fetch shards in the background; twice as many stay on disk, the others go.

        Args:
            urls: Those that are read next, in order.
        """
        self._keep = max(self._keep, 2 * len(urls))
        for url in urls:
            if url not in self._asked:
                self._asked[url] = None
                self._waiting.append(url)
        for url in list(self._asked)[: -self._keep or None]:
            del self._asked[url]
            self._ready.pop(url, None)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._fetch_all, daemon=True)
            self._thread.start()

    def _fetch_all(self) -> None:
        while self._waiting:
            url = self._waiting.popleft()
            try:
                if url in self._asked:
                    self._ready[url] = self._fetched(url)
            except (DataError, OSError) as error:  # it is read by ranges instead
                log.warning("%s could not be fetched whole: %s", url, error)

    def _fetched(self, url: str) -> str:
        facts = url_facts(url)
        path = cache_folder() / "shards" / f"{cache_key([url, *facts])}.tar"
        with one_at_a_time(path.with_suffix(".lock"), None):
            if not path.is_file():
                with placed(path) as temporary, temporary.open("wb") as copy:
                    for start in range(0, facts[0], FETCHED_BYTES):
                        copy.write(read_slice(url, start, min(FETCHED_BYTES, facts[0] - start)))
        path.touch()  # the newest
        self._make_room(path.parent)
        return str(path)

    def _make_room(self, folder: Path) -> None:
        times = []
        for path in folder.glob("*.tar"):
            with suppress(FileNotFoundError):
                times.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(times)[: -self._keep]:
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)


shard_cache = ShardCache()
