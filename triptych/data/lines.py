"""Text files as numbered lines, whatever wrote them, and JSON files with errors that say where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.data.skips import SkipKind, Skipped

UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


def read_lines(path: Path) -> Iterator[tuple[int, str | Skipped]]:
    """Yield (line number from 1, text without its line end); blank lines are passed over.

    A byte order mark and carriage returns are removed. A line that is not UTF-8 comes as a
    `Skipped`.

    Raises:
        DataError: The file cannot be read, or is UTF-16.
    """
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                line = raw
                if number == 1:
                    _reject_utf16(line, path)
                    line = line.removeprefix(UTF8_BOM)
                try:
                    text = line.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    message = f"byte {error.start + 1} is not UTF-8 ({line[error.start]:#04x})"
                    yield number, Skipped(SkipKind.NOT_UTF8, f"{path}:{number}", message)
                    continue
                if text.strip():
                    yield number, text
    except OSError as error:
        raise cannot_read(path, error) from error


def load_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        DataError: The file cannot be read, is not UTF-8, or is not JSON; the message has the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise cannot_read(path, error) from error
    _reject_utf16(data, path)
    try:
        return json.loads(data.removeprefix(UTF8_BOM).decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 at byte {error.start}. Save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        clue = " (is it JSON Lines? then name it .jsonl)" if "Extra data" in error.msg else ""
        raise DataError(
            f"{path}:{error.lineno}: not valid JSON at column {error.colno}: {error.msg}{clue}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not usable JSON: {error}") from error


def parse_json_line(text: str) -> Any:
    """Return the value of one line.

    Raises:
        ValueError: It is not JSON, nests too deeply, or holds a number too long to read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nests too deeply") from error


def cannot_read(path: Path, error: OSError) -> DataError:
    """Return the error for a file that cannot be opened, with the nearest things that exist."""
    if isinstance(error, FileNotFoundError):
        parent = path.parent
        if parent.is_dir():
            names = sorted(entry.name for entry in parent.iterdir())[:8]
            return DataError(
                f"{path}: there is no such file; {parent} holds: {', '.join(names) or 'nothing'}"
            )
        return DataError(f"{path}: there is no such file, and no folder {parent}")
    return DataError(f"{path}: cannot be read: {error.strerror}")


def _reject_utf16(data: bytes, path: Path) -> None:
    if data.startswith(UTF16_BOMS):
        raise DataError(f"{path}: is UTF-16 text. Save it as UTF-8")
