"""Text files as numbered lines, whatever wrote them, and JSON files with errors that say where.

A large JSON file is read member by member: of a list of a million entries, one is in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from triptych.core.errors import DataError
from triptych.data.skips import SkipKind, Skipped

UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
CHUNK = 2**20  # characters
MAX_MEMBER = 2**28  # characters of one member of a file that is read member by member


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


def iterate_json(path: Path) -> Iterator[tuple[str | int, Any]]:
    """Yield key and value of a JSON file's object, or index and item of its list, one at a time.

    Raises:
        DataError: The file cannot be read, is not UTF-8, holds neither, or is not JSON; members
            before the place where it is damaged have come by then.
    """
    try:
        with path.open("rb") as raw:
            _reject_utf16(raw.read(2), path)
        with path.open(encoding="utf-8-sig") as file:
            yield from _Members(path, file, MAX_MEMBER).iterate()
    except OSError as error:
        raise cannot_read(path, error) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error}. Save the file as UTF-8") from error


def is_json_lines(path: Path) -> bool:
    """Return whether a file holds a JSON object a line, whatever its name: NLVR2's are `.json`."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = (file.readline(CHUNK).strip() for _ in range(2))
            first, second = lines
        return second.startswith("{") and isinstance(parse_json_line(first), dict)
    except (OSError, ValueError):
        return False


def first_member(path: Path) -> tuple[str | int, Any] | None:
    """Return the first member of a JSON file; None if it is long, or there is none to be read."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return next(_Members(path, file, CHUNK).iterate(), None)
    except (OSError, ValueError, DataError):
        return None


class _Members:
    """A JSON file that is read piece by piece: `text` from `at` on is what is not used yet."""

    def __init__(self, path: Path, file: TextIO, max_chars: int) -> None:
        self.path, self.file, self.max_chars = path, file, max_chars
        self.text, self.at, self.line = "", 0, 1

    def iterate(self) -> Iterator[tuple[str | int, Any]]:
        opening = self._next()
        if opening not in ("[", "{"):
            raise self._wrong("expected a list or an object")
        closing = "]" if opening == "[" else "}"
        index = 0
        while (mark := self._next()) != closing or index:
            if index == 0:
                self.at -= 1  # the mark is the first of the member
            elif mark == closing:
                break
            elif mark != ",":
                raise self._wrong("expected a comma")
            key: Any = index if opening == "[" else self._value()
            if opening == "{":
                if not isinstance(key, str):
                    raise self._wrong("expected a name in quotation marks")
                if self._next() != ":":
                    raise self._wrong("expected a colon")
            yield key, self._value()
            index += 1
        if self._next():
            raise self._wrong("the file goes on after its end (is it JSON Lines? name it .jsonl)")

    def _next(self) -> str:
        """Take the next character that is no space; "" at the end."""
        while True:
            found = _SPACE.match(self.text, self.at)
            assert found is not None, "the pattern matches nothing, too"
            self.line += self.text.count("\n", self.at, found.end())
            self.at = found.end()
            if self.at < len(self.text):
                self.at += 1
                return self.text[self.at - 1]
            if not self._more():
                return ""

    def _value(self) -> Any:
        if self._next():
            self.at -= 1
        while True:
            problem = "the file ends here"
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
                # A number that ends with the piece may go on in the next.
                if end < len(self.text) or not self._more():
                    self.line += self.text.count("\n", self.at, end)
                    self.at = end
                    return value
                continue
            except json.JSONDecodeError as error:
                problem = error.msg
            except (ValueError, RecursionError) as error:
                raise self._wrong(str(error)) from error
            if len(self.text) - self.at > self.max_chars or not self._more():
                raise self._wrong(problem)

    def _more(self) -> bool:
        """Read as much again as is waiting, and drop what is used; False at the end."""
        waiting = self.text[self.at :]
        added = self.file.read(max(CHUNK, len(waiting)))
        self.text, self.at = waiting + added, 0
        return bool(added)

    def _wrong(self, problem: str) -> DataError:
        return DataError(f"{self.path}:{self.line}: not valid JSON: {problem}")


_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")


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
