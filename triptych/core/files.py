"""Files that are either complete or absent, and folders that one run has to itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from triptych.core.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two runs out of one folder there
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless they are there.

    Raises:
        ConfigError: A file is in the way, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "there is a file of that name" if folder.is_file() else error.strerror
        raise ConfigError(f"{folder} cannot be a folder: {why}; choose another one") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder} cannot be written to: fix its permissions or choose another")


def has_entries(folder: Path) -> bool:
    """Return whether a folder is there and not empty.

    Raises:
        ConfigError: There is a file in its place.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, not a folder: choose another name")
    return folder.is_dir() and any(folder.iterdir())


@contextmanager
def folder_for_one(folder: Path) -> Iterator[None]:
    """Make a folder, and keep other processes that ask for it out until the end of the block.

    The system lets go of a process that dies. On file systems without locks, and on Windows, two
    processes are not kept apart.

    Raises:
        ConfigError: Another process has the folder, or it cannot be made.
    """
    make_folder(folder)
    if fcntl is None:
        yield
        return
    with (folder / LOCK_FILE).open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # forked workers do not keep it
        except (BlockingIOError, PermissionError) as error:
            raise ConfigError(
                f"another run is writing to {folder}: wait for it, or choose another folder"
            ) from error
        except OSError:  # no locks on this file system
            pass
        yield


def whole_file_for_one(path: Path) -> IO[bytes]:
    """Open a file to read and write, new or as it is, and keep other processes that ask for it out.

    The system lets go of a process that dies; see `folder_for_one` for where nothing is kept apart.

    Raises:
        ConfigError: Another process has the file, or it cannot be written.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # outlives another reader of the file
        except (BlockingIOError, PermissionError) as error:
            file.close()
            raise ConfigError(
                f"another process is writing to {path}: wait for it, or choose another file"
            ) from error
        except OSError:  # no locks on this file system
            pass
    return file


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` to a temporary name, flush it to disk and rename it to `path`.

    A kill at any moment leaves the old file or the new one, never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    data = content.encode() if isinstance(content, str) else content
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
