"""Files of others: what is opened, how much of it is read, and errors that name the file.

Only regular files are opened, since a named pipe waits for ever and a device never ends, and no
more of one is read than its kind may have. `reading` turns whatever a parser raises on foreign
content into one error that says which file it is, and where in it; the functions below read by it.
"""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import yaml

from triptych.core.errors import ConfigError, DataError, TriptychError

MIB, GIB = 2**20, 2**30
MAX_IMAGE_BYTES = GIB
"""Of an image file or the part of a shard that is one, encoded."""
MAX_DATA_BYTES = 2 * GIB
"""Of a file of data that is read whole: a JSON file, a pickle, a clip of a URL."""
MAX_SETTINGS_BYTES = 64 * MIB
"""Of a file that only describes: configs, vocabularies, cards, lists of classes."""
MAX_ZIP_MEMBERS = 100_000
MAX_YAML_NODES = 100_000
"""Values of a YAML file, each counted as often as aliases repeat it."""

UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
NUM_NEIGHBOURS = 8  # names of a folder that the error for a missing file lists
_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


BAD_CONTENT = (
    *(ValueError, KeyError, IndexError, TypeError, AttributeError),
    *(ArithmeticError, RecursionError, MemoryError),
)
"""What code that expects another content raises, for places that say more than `reading` can."""


class UnreadableFileError(OSError):
    """Something that is never read: no regular file, or one that is too large for its kind."""


def check_regular(path: Path | str, max_bytes: int | None = None) -> None:
    """Raise where a path is no regular file, before a library that knows no better opens it.

    Args:
        path: The file; links are followed.
        max_bytes: The most that it may have; None for any size.

    Raises:
        OSError: It is missing, a folder, a pipe, a device or a socket, or larger.
        ValueError: The path holds a NUL character.
    """
    _check(os.stat(path), path, max_bytes)  # noqa: PTH116 - 1 us, not 5: asked for each image


def open_regular(path: Path | str, max_bytes: int | None = None) -> BinaryIO:
    """Open a regular file for reading; errors are those of `check_regular`."""
    return os.fdopen(open_descriptor(path, max_bytes), "rb")


def open_descriptor(path: Path | str, max_bytes: int | None = None) -> int:
    """Return the descriptor of a regular file, opened for reading; see `open_regular`."""
    check_regular(path, max_bytes)  # before it is opened: to open a device may do something
    # Not to wait for ever either, should a pipe have taken its place meanwhile.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        _check(os.fstat(descriptor), path, max_bytes)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_text(path: Path, errors: str = "strict", newline: str | None = None) -> TextIO:
    """Open a regular file as UTF-8 text, without a byte order mark; arguments are `open`'s."""
    return io.TextIOWrapper(open_regular(path), "utf-8-sig", errors, newline)


def read_bytes(path: Path | str, max_bytes: int = MAX_DATA_BYTES) -> bytes:
    """Return the bytes of a regular file; errors are those of `check_regular`."""
    with open_regular(path, max_bytes) as file:
        data = file.read(max_bytes + 1)  # a file may grow meanwhile
    if len(data) > max_bytes:
        raise too_large(path, len(data), max_bytes)
    return data


@contextmanager
def reading(path: Path | str, error: type[TriptychError] = DataError) -> Iterator[None]:
    """Turn whatever foreign content makes a block raise into an error that names the file.

    Errors of ours pass as they are, and so does Ctrl-C.

    Args:
        path: What the block reads.
        error: What is raised instead.

    Example:
        `with reading(path, CheckpointError): state = parse(path.read_bytes())`
    """
    try:
        yield
    except TriptychError:
        raise
    except Exception as problem:  # parsers raise what they like on hostile content
        raise error(_told(path, problem)) from problem
    except BaseException as problem:
        if type(problem).__name__ == "PanicException":  # of libraries in Rust; pyo3 hides its class
            raise error(_told(path, problem)) from problem
        raise


def read_text(
    path: Path, *, max_bytes: int = MAX_SETTINGS_BYTES, error: type[TriptychError] = DataError
) -> str:
    """Return a UTF-8 text file, without a byte order mark.

    Args:
        path: The file.
        max_bytes: The most that it may have.
        error: What is raised.

    Raises:
        TriptychError: `error`, where it cannot be read, is too large, or is not UTF-8; the message
            has the line.
    """
    with reading(path, error):
        data = read_bytes(path, max_bytes)
        if data.startswith(UTF16_BOMS):
            raise error(f"{path}: is UTF-16 text. Save it as UTF-8")
        return data.removeprefix(UTF8_BOM).decode("utf-8")


def read_json(
    path: Path, *, max_bytes: int = MAX_DATA_BYTES, error: type[TriptychError] = DataError
) -> Any:
    """Return the content of a JSON file; see `read_text` for arguments and errors."""
    text = read_text(path, max_bytes=max_bytes, error=error)
    with reading(path, error):
        return json.loads(text)


def read_json_object(
    path: Path, *, max_bytes: int = MAX_SETTINGS_BYTES, error: type[TriptychError] = DataError
) -> dict[str, Any]:
    """Return the content of a JSON file that holds an object; see `read_text`."""
    found = read_json(path, max_bytes=max_bytes, error=error)
    if not isinstance(found, dict):
        raise error(f"{path}: expected an object {{...}}, found {type(found).__name__}")
    return found


def read_yaml(path: Path, *, error: type[TriptychError] = ConfigError) -> Any:
    """Return the content of a YAML file; see `read_text`."""
    text = read_text(path, error=error)
    with reading(path, error):
        return parse_yaml(text)


def parse_yaml(text: str) -> Any:
    """Return the plain values of YAML text. No class is built, and aliases cannot multiply.

    Raises:
        ValueError: It has too many values, or one holds itself.
        yaml.YAMLError: It is no YAML.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count_nodes(node, {}, set())
        return loader.construct_document(node)
    finally:
        loader.dispose()


@contextmanager
def open_zip(
    path: Path, *, max_bytes: int, error: type[TriptychError] = DataError
) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive whose content, unpacked, is no larger than `max_bytes`.

    What the block raises on its content names the file; see `reading`.

    Args:
        path: The archive.
        max_bytes: The most that its members may have together, unpacked; no member gives more
            than its entry says, which `zipfile` sees to.
        error: What is raised.
    """
    with reading(path, error), open_regular(path) as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)
        if len(members) > MAX_ZIP_MEMBERS:
            raise error(f"{path}: has {len(members)} members; at most {MAX_ZIP_MEMBERS} are read")
        if size > max_bytes:
            raise error(f"{path}: {too_large(path, size, max_bytes).strerror} once it is unpacked")
        yield archive


def cannot_read(
    path: Path | str, problem: OSError, error: type[TriptychError] = DataError
) -> TriptychError:
    """Return the error for a file that cannot be opened, with the nearest things that exist."""
    return error(_told(path, problem))


def _check(found: os.stat_result, path: Path | str, max_bytes: int | None) -> None:
    if stat.S_ISREG(found.st_mode):
        if max_bytes is not None and found.st_size > max_bytes:
            raise too_large(path, found.st_size, max_bytes)
        return
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", str(path))
    kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "something else")
    raise UnreadableFileError(errno.EINVAL, f"is {kind}, not a regular file", str(path))


def too_large(path: Path | str, size: int, max_bytes: int) -> UnreadableFileError:
    """Return the error for a file, or a part of one, that has more bytes than its kind may."""
    message = f"has {_gib(size)}, and at most {_gib(max_bytes)} is read of a file of its kind"
    return UnreadableFileError(errno.EFBIG, message, str(path))


def _gib(size: int) -> str:
    return f"{size / GIB:.3g} GiB" if size >= GIB else f"{size / MIB:.3g} MiB"


def _told(path: Path | str, problem: BaseException) -> str:
    """Return what is wrong with a file, in words."""
    if isinstance(problem, FileNotFoundError):
        return f"{path}: there is no such file{_neighbours(Path(path).parent)}"
    if isinstance(problem, UnreadableFileError | IsADirectoryError):
        return f"{path}: {problem.strerror}"
    if isinstance(problem, gzip.BadGzipFile):
        return f"{path}: is no gzip file: {problem}. Download it again"
    if isinstance(problem, EOFError | zlib.error):
        return f"{path}: ends early, or is broken: {problem}. Download it again"
    if isinstance(problem, OSError):
        return f"{path}: cannot be read: {problem.strerror or problem}"
    if isinstance(problem, UnicodeDecodeError):
        line = problem.object.count(b"\n", 0, problem.start) + 1
        return f"{path}:{line}: not UTF-8 at byte {problem.start}. Save the file as UTF-8"
    if isinstance(problem, json.JSONDecodeError):
        clue = " (is it JSON Lines? then name it .jsonl)" if "Extra data" in problem.msg else ""
        place = f"{path}:{problem.lineno}: not valid JSON at column {problem.colno}"
        return f"{place}: {problem.msg}{clue}"
    if isinstance(problem, yaml.MarkedYAMLError):
        mark = problem.problem_mark
        where = path if mark is None else f"{path}:{mark.line + 1}"
        what = ": ".join(part for part in (problem.context, problem.problem) if part)
        return f"{where}: not valid YAML: {what}"
    if isinstance(problem, yaml.YAMLError):
        return f"{path}: not valid YAML: {' '.join(str(problem).split())}"
    if isinstance(problem, csv.Error):
        return f"{path}: not valid CSV: {problem}"
    if isinstance(problem, zipfile.BadZipFile | NotImplementedError):
        return f"{path}: is no zip archive that can be read: {problem}"
    if isinstance(problem, RecursionError):
        return f"{path}: nests too deeply to be read"
    if isinstance(problem, MemoryError):
        return f"{path}: does not fit into the memory"
    said = " ".join(str(problem).split())
    what = f"{type(problem).__name__}: {said}" if said else type(problem).__name__
    return f"{path}: cannot be used as it is: {what}"


def _neighbours(parent: Path) -> str:
    try:
        if not parent.is_dir():
            return f", and no folder {parent}"
        names = sorted(entry.name for entry in parent.iterdir())[:NUM_NEIGHBOURS]
    except (OSError, ValueError):
        return ""
    return f"; {parent} holds: {', '.join(names) or 'nothing'}"


def _count_nodes(node: yaml.Node, sizes: dict[int, int], above: set[int]) -> int:
    """Return how many values a YAML node stands for once aliases are followed."""
    known = sizes.get(id(node))
    if known is not None:
        return known
    if id(node) in above:
        raise ValueError(f"line {node.start_mark.line + 1}: a value holds itself")
    above.add(id(node))
    size = 1
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    else:
        children = node.value if isinstance(node, yaml.SequenceNode) else []
    for child in cast("list[yaml.Node]", children):
        size += _count_nodes(child, sizes, above)
        if size > MAX_YAML_NODES:
            line = node.start_mark.line + 1
            raise ValueError(f"line {line}: more than {MAX_YAML_NODES} values, aliases counted")
    above.discard(id(node))
    sizes[id(node)] = size
    return size
