"""Text files as numbered lines, whatever wrote them, and JSON files with errors that say where.

A large JSON file is read member by member: of a list of a million entries, one is in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import IO, Any, AnyStr, TextIO

from triptych.core.errors import DataError
from triptych.core.reading import (
    MIB,
    UTF8_BOM,
    UTF16_BOMS,
    open_regular,
    open_text,
    reading,
)
from triptych.data.skips import SkipKind, Skipped

CHUNK = 2**20  # characters
MAX_LINE = 64 * MIB  # bytes
MAX_MEMBER = 2**28  # characters of one member of a file that is read member by member


def read_lines(path: Path, *, keep_blank: bool = False) -> Iterator[tuple[int, str | Skipped]]:
    """Yield (line number from 1, text without its line end); blank lines are passed over.

    A byte order mark and carriage returns are removed. A line that is not UTF-8 comes as a
    `Skipped`.

    Args:
        path: The file.
        keep_blank: Whether blank lines come, too.

    Raises:
        DataError: The file cannot be read, is UTF-16, or has a line that is too long to be one.
    """
    with reading(path), open_regular(path) as file:
        for number, raw in enumerate(bounded_lines(file), 1):
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
            if keep_blank or text.strip():
                yield number, text


def bounded_lines(file: IO[AnyStr]) -> Iterator[AnyStr]:
    """Yield the lines of a file, of bytes or text, with their ends.

    Raises:
        ValueError: A line is longer than `MAX_LINE`; such a file has no lines.
    """
    for number in count(1):
        line = file.readline(MAX_LINE + 1)
        if len(line) > MAX_LINE:
            raise ValueError(f"line {number} has more than {MAX_LINE // MIB} MiB")
        if not line:
            return
        yield line


def iterate_json(path: Path) -> Iterator[tuple[str | int, Any]]:
    """Yield key and value of a JSON file's object, or index and item of its list, one at a time.

    Raises:
        DataError: The file cannot be read, is not UTF-8, holds neither, or is not JSON; members
            before the place where it is damaged have come by then.
    """
    with reading(path):
        with open_regular(path) as raw:
            _reject_utf16(raw.read(2), path)
        with open_text(path) as file:
            yield from _Members(path, file, MAX_MEMBER).iterate()


def is_json_lines(path: Path) -> bool:
    """Return whether a file holds a JSON object a line, whatever its name: NLVR2's are `.json`."""
    try:
        with open_text(path) as file:
            lines = (file.readline(CHUNK).strip() for _ in range(2))
            first, second = lines
        return second.startswith("{") and isinstance(parse_json_line(first), dict)
    except (OSError, ValueError):
        return False


def first_member(path: Path) -> tuple[str | int, Any] | None:
    """Return the first member of a JSON file; None if it is long, or there is none to be read."""
    try:
        with open_text(path) as file:
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


def _reject_utf16(data: bytes, path: Path) -> None:
    if data.startswith(UTF16_BOMS):
        raise DataError(f"{path}: is UTF-16 text. Save it as UTF-8")
