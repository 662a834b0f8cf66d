"""Pickled files that hold plain values, read without running anything that they name.

A pickle is a program for a stack machine. Of its instructions only those are carried out that make
numbers, texts, lists, tuples, sets and dicts; one that names a class or calls anything is refused,
so nothing of the file is imported or run. Protocols 0 to 2, as Python 2 wrote them, and 3 to 5.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.core.reading import read_bytes, reading

PICKLE_SUFFIXES = frozenset({".p", ".pkl", ".pickle"})
MAX_PROTOCOL = 5
MAX_INT_BYTES = 256  # larger ones cannot be printed
RUNS = {
    b"c": "GLOBAL",
    b"\x93": "STACK_GLOBAL",
    b"R": "REDUCE",
    b"b": "BUILD",
    b"i": "INST",
    b"o": "OBJ",
    b"\x81": "NEWOBJ",
    b"\x92": "NEWOBJ_EX",
    b"P": "PERSID",
    b"Q": "BINPERSID",
    b"\x82": "EXT1",
    b"\x83": "EXT2",
    b"\x84": "EXT4",
    b"\x96": "BYTEARRAY8",
    b"\x97": "NEXT_BUFFER",
    b"\x98": "READONLY_BUFFER",
}
"""The instructions that name, make, change or fetch objects: none is carried out."""


class LiteralError(ValueError):
    """A pickle is damaged, or holds more than plain values."""


def is_pickle(path: str) -> bool:
    """Return whether a path ends as pickled files do."""
    return Path(path).suffix.lower() in PICKLE_SUFFIXES


def load_literals(path: Path) -> Any:
    """Return the plain values of a pickled file; texts of Python 2 come as str.

    Raises:
        DataError: The file cannot be read, is damaged, or holds more than plain values.
    """
    with reading(path):
        data = read_bytes(path)
    try:
        return parse_literals(data)
    except LiteralError as error:
        raise DataError(
            f"{path}: {error}. Only pickles of plain values (numbers, texts, lists, dicts) are "
            "read, because any other could run code; write the data as JSON where you trust it"
        ) from error


def parse_literals(data: bytes) -> Any:
    """Return the value that a pickle describes.

    Raises:
        LiteralError: It is damaged, or holds more than plain values.
    """
    machine = _Machine(data)
    try:
        return machine.run()
    except LiteralError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, struct.error, OverflowError) as error:
        what = "the file ends too early" if machine.at > len(data) else f"{error}"
        raise LiteralError(f"is a damaged pickle at byte {machine.last}: {what}") from error


_INT, _UINT16 = struct.Struct("<i"), struct.Struct("<H")
_UINT32, _UINT64, _DOUBLE = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct(">d")


class _Machine:
    """Carries out the instructions of `data`; `last` is where the present one stands.

    `below` holds the stacks under the marks: a group is all that lies above the last mark.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.last = data, 0, 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        data, actions, stop = self.data, _BY_CODE, ord(".")
        while True:
            at = self.last = self.at
            self.at = at + 1
            code = data[at]
            if code == stop:
                return self.stack.pop()
            action = actions[code]
            if action is None:
                raise self._refused(data[at : at + 1])
            action(self)

    def _refused(self, code: bytes) -> LiteralError:
        if code in RUNS:
            return LiteralError(f"its instruction {RUNS[code]} at byte {self.last} is refused")
        return LiteralError(f"is not a pickle: no instruction {code!r} at byte {self.last}")

    def take(self, size: int) -> bytes:
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise ValueError("the file ends too early")
        return self.data[start : self.at]

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            self.at = len(self.data) + 1
            raise ValueError("the file ends too early")
        start, self.at = self.at, end + 1
        return self.data[start:end]

    def number(self, kind: struct.Struct) -> Any:
        return kind.unpack(self.take(kind.size))[0]

    def push_group(self, make: Callable[[list[Any]], Any]) -> None:
        values = self.group()  # changes the stack
        self.stack.append(make(values))

    def top(self, kind: type) -> Any:
        value = self.stack[-1]
        if type(value) is not kind:
            raise ValueError(f"expected a {kind.__name__}")
        return value

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def group(self) -> list[Any]:
        """Take the values above the last mark, and the mark."""
        if not self.below:
            raise ValueError("a mark is missing")
        values, self.stack = self.stack, self.below.pop()
        return values

    def put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def tuple_of(self, size: int) -> None:
        if len(self.stack) < size:
            raise ValueError("a value is missing")
        self.stack[-size:] = [tuple(self.stack[-size:])]

    def set_items(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise ValueError("a key without a value")
        target = self.top(dict)
        for index in range(0, len(values), 2):
            key = values[index]
            target[key if type(key) is str else _plain_key(key)] = values[index + 1]


def _plain_key(key: Any) -> Hashable:
    if not isinstance(key, (str, bytes, int, float, tuple, frozenset)) and key is not None:
        raise ValueError(f"a {type(key).__name__} is no key")
    hash(key)
    return key  # type: ignore[no-any-return]


def _text(raw: bytes) -> str:
    """Return a Python 2 string: UTF-8 where it is that, else Latin-1, which never fails."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _quoted(line: bytes) -> str:
    text = line.strip()
    if len(text) < 2 or text[:1] not in (b"'", b'"') or text[-1:] != text[:1]:
        raise ValueError("a string without its quotation marks")
    return _text(codecs.escape_decode(text[1:-1])[0])  # type: ignore[attr-defined]


def _whole(line: bytes) -> int | bool:
    if line in (b"00", b"01"):
        return line == b"01"
    if len(line) > 2 * MAX_INT_BYTES:
        raise ValueError(f"a whole number of {len(line)} digits")
    return int(line.removesuffix(b"L"))


def _long(raw: bytes) -> int:
    if len(raw) > MAX_INT_BYTES:
        raise ValueError(f"a whole number of {len(raw)} bytes")
    return int.from_bytes(raw, "little", signed=True)


def _size(machine: _Machine, kind: struct.Struct) -> bytes:
    size = machine.number(kind)
    if size < 0:
        raise ValueError("a negative size")
    return machine.take(size)


def _byte(machine: _Machine) -> int:
    return machine.take(1)[0]


def _protocol(machine: _Machine) -> None:
    protocol = _byte(machine)
    if protocol > MAX_PROTOCOL:
        raise LiteralError(f"is a pickle of protocol {protocol}, which is not known")


def _no_frame(machine: _Machine) -> None:
    machine.take(8)


def _append(machine: _Machine) -> None:
    value = machine.stack.pop()
    machine.top(list).append(value)


def _appends(machine: _Machine) -> None:
    values = machine.group()
    machine.top(list).extend(values)


def _set_item(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items([key, value])


def _dict(machine: _Machine) -> None:
    values = machine.group()
    machine.stack.append({})
    machine.set_items(values)


def _add_items(machine: _Machine) -> None:
    values = machine.group()
    machine.top(set).update(map(_plain_key, values))


def _get(machine: _Machine, key: int) -> None:
    machine.stack.append(machine.memo[key])


_ACTIONS: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": _protocol,
    b"\x95": _no_frame,
    b"(": lambda m: m.mark(),
    b"0": lambda m: m.stack.pop(),
    b"1": lambda m: m.group(),
    b"2": lambda m: m.stack.append(m.stack[-1]),
    b"N": lambda m: m.stack.append(None),
    b"\x88": lambda m: m.stack.append(True),
    b"\x89": lambda m: m.stack.append(False),
    b"I": lambda m: m.stack.append(_whole(m.line())),
    b"L": lambda m: m.stack.append(_whole(m.line())),
    b"J": lambda m: m.stack.append(m.number(_INT)),
    b"K": lambda m: m.stack.append(_byte(m)),
    b"M": lambda m: m.stack.append(m.number(_UINT16)),
    b"\x8a": lambda m: m.stack.append(_long(m.take(_byte(m)))),
    b"\x8b": lambda m: m.stack.append(_long(_size(m, _INT))),
    b"F": lambda m: m.stack.append(float(m.line())),
    b"G": lambda m: m.stack.append(m.number(_DOUBLE)),
    b"S": lambda m: m.stack.append(_quoted(m.line())),
    b"T": lambda m: m.stack.append(_text(_size(m, _INT))),
    b"U": lambda m: m.stack.append(_text(m.take(_byte(m)))),
    b"V": lambda m: m.stack.append(m.line().decode("raw-unicode-escape")),
    b"X": lambda m: m.stack.append(_size(m, _UINT32).decode("utf-8", "surrogatepass")),
    b"\x8c": lambda m: m.stack.append(m.take(_byte(m)).decode("utf-8", "surrogatepass")),
    b"\x8d": lambda m: m.stack.append(_size(m, _UINT64).decode("utf-8", "surrogatepass")),
    b"B": lambda m: m.stack.append(_size(m, _UINT32)),
    b"C": lambda m: m.stack.append(m.take(_byte(m))),
    b"\x8e": lambda m: m.stack.append(_size(m, _UINT64)),
    b"]": lambda m: m.stack.append([]),
    b"}": lambda m: m.stack.append({}),
    b")": lambda m: m.stack.append(()),
    b"\x8f": lambda m: m.stack.append(set()),
    b"l": lambda m: m.push_group(list),
    b"t": lambda m: m.push_group(tuple),
    b"d": _dict,
    b"\x91": lambda m: m.push_group(lambda values: frozenset(map(_plain_key, values))),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"a": _append,
    b"e": _appends,
    b"s": _set_item,
    b"u": lambda m: m.set_items(m.group()),
    b"\x90": _add_items,
    b"p": lambda m: m.put(int(m.line())),
    b"q": lambda m: m.put(_byte(m)),
    b"r": lambda m: m.put(m.number(_UINT32)),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"g": lambda m: _get(m, int(m.line())),
    b"h": lambda m: _get(m, _byte(m)),
    b"j": lambda m: _get(m, m.number(_UINT32)),
}
_BY_CODE = [_ACTIONS.get(bytes([code])) for code in range(256)]
