"""Files that are complete or absent, folders that one run has to itself, and disks that refuse."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from triptych.core.errors import ConfigError, DataError, TriptychError

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two runs out of one folder there
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"


class NotWritableError(OSError):
    """A file that the system does not let us write, by its final name."""


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
    """Return whether a folder is there and holds more than its lock.

    Raises:
        ConfigError: There is a file in its place.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, not a folder: choose another name")
    return folder.is_dir() and any(path.name != LOCK_FILE for path in folder.iterdir())


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


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What a system answers where a file may not grow: disk, quota, or limit of the process."""

_LITTLE_BYTES = 1 << 20
"""Less free space than this explains a failure of a library that names no cause."""

AGAIN = "give the command again"


@contextmanager
def writing(
    what: str,
    place: Path,
    *,
    kind: type[TriptychError] = DataError,
    then: str = AGAIN,
    only_full: bool = False,
) -> Iterator[None]:
    """Turn what a disk refuses in the block into one error that says what to do.

    Args:
        what: What is written, such as "checkpoint runs/a/checkpoints/step_3".
        place: A file or folder on that disk.
        kind: Class of the error.
        then: What to do once the disk is ready.
        only_full: Leave all but a full disk alone, where the block does not only write.

    Raises:
        TriptychError: The disk is full or read-only, or nothing may be written there.
    """
    try:
        yield
    except TriptychError:
        raise
    except Exception as error:  # pyarrow, torch, faiss and numpy have errors of their own
        if not (is_full(error, place) or (isinstance(error, OSError) and not only_full)):
            raise
        raise kind(refusal(what, error, then)) from error


def is_full(error: BaseException, place: Path | None = None) -> bool:
    """Return whether an error says that a disk is full.

    Args:
        error: Of the system, or of a library that wrote a file.
        place: A path on the disk, which is looked at where a library's error has no code.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    if not isinstance(error, (OSError, RuntimeError)):
        return False
    inner = error.__cause__ or error.__context__  # torch's error of a file follows on Python's
    if inner is not None and is_full(inner):
        return True
    if any(os.strerror(code) in str(error) for code in FULL):
        return True
    if place is None:
        return False
    while not place.exists() and place != place.parent:
        place = place.parent
    with suppress(OSError):
        return shutil.disk_usage(place).free < _LITTLE_BYTES
    return False


def refusal(what: str, error: BaseException, then: str = AGAIN) -> str:
    """Return what to tell the user of a file that could not be written.

    Args:
        what: The file, as for `writing`.
        error: Why not.
        then: What to do once the disk is ready.
    """
    code = error.errno if isinstance(error, OSError) else errno.ENOSPC
    reason = os.strerror(code) if code is not None else str(error)
    remedy = f"check the disk and who may write there, or choose another folder, then {then}"
    if code in FULL or code is None:
        remedy = f"free space on the disk or choose another folder, then {then}"
    elif code == errno.ENOENT:
        remedy = f"its folder was removed meanwhile; {then}"
    return f"cannot write {what}: {reason}; {remedy}"


@contextmanager
def placed(path: Path, *, parents: bool = True) -> Iterator[Path]:
    """Give a temporary name beside `path`, which takes its place at the end of the block.

    What lies there is removed where the block fails; a kill leaves it to `remove_partials`.

    Args:
        path: A file, or a folder that is not there yet.
        parents: Whether folders above it are made; a run does not bring back what was removed.

    Yields:
        Where to write it: a name without a file.

    Raises:
        NotWritableError: Its folder cannot be made or written to, or the name is taken.
    """
    if parents:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotWritableError(error.errno, error.strerror, str(path)) from error
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        _remove(temporary)
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        full = is_full(error, temporary)  # asked before the part that fills the disk is removed
        with suppress(OSError):
            _remove(temporary)
        if full and not isinstance(error, OSError):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if isinstance(error, OSError) and error.filename == str(temporary):
            raise NotWritableError(error.errno, error.strerror, str(path)) from error
        raise


def remove_partials(folder: Path) -> None:
    """Remove what killed processes have left under temporary names in a folder that is ours alone.

    Such names are those of `placed`, and of folders that a new one was to replace.
    """
    for kind in ("tmp", "old"):
        for path in folder.glob(f".*.{kind}[0-9]*"):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes, *, parents: bool = True) -> None:
    """Write `content` to a temporary name, flush it to disk and rename it to `path`.

    A kill at any moment leaves the old file or the new one, never a part. For `parents`, see
    `placed`.
    """
    data = content.encode() if isinstance(content, str) else content
    with placed(path, parents=parents) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any, *, parents: bool = True) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", parents=parents)
