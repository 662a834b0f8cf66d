"""Pickles of plain values: read as `pickle` reads them, and nothing else is read at all."""

import builtins
import collections
import datetime
import os
import pickle
import pickletools
import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.core.errors import DataError
from triptych.data.literals import RUNS, LiteralError, load_literals, parse_literals

KEYS = st.text(max_size=4) | st.integers() | st.booleans() | st.none()
VALUES = st.recursive(
    KEYS | st.floats(allow_nan=False) | st.binary(max_size=300) | st.text(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(VALUES, st.integers(3, 5))
def test_plain_values_come_as_pickle_reads_them(value, protocol):
    found = parse_literals(pickle.dumps(value, protocol))
    assert found == value and repr(found) == repr(value)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.text(max_size=20) | st.integers() | st.floats(allow_nan=False) | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=12,
    ),
    st.integers(0, 2),
)
def test_old_protocols_too(value, protocol):
    assert parse_literals(pickle.dumps(value, protocol)) == value


def test_sets_and_shared_values():
    shared = ["x"]
    value = {"a": shared, "b": shared, "c": {1, 2}, "d": frozenset({3})}
    found = parse_literals(pickle.dumps(value, 4))
    assert found == value and found["a"] is found["b"]
    again = []
    again.append(again)
    found = parse_literals(pickle.dumps(again, 2))
    assert found[0] is found


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"S'it\\'s'\n.", "it's"),
        (b'S"caf\\xc3\\xa9"\n.', "café"),
        (b"S'caf\\xe9'\n.", "café"),  # Latin-1
        (b"U\x05caf\xc3\xa9.", "café"),
        (b"T\x04\x00\x00\x00caf\xe9.", "café"),
        (b"V\\u00e9\n.", "é"),
        (b"I01\n.", True),
        (b"L123L\n.", 123),
        (b"F1.5\n.", 1.5),
    ],
)
def test_what_python_2_wrote(data, value):
    assert parse_literals(data) == value


class Evil:
    """Writes a file if its pickle is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


OBJECTS = [
    os.system,
    collections.OrderedDict(a=1),
    datetime.date(2020, 1, 1),
    ValueError("x"),
    range(3),
    1j,
    bytearray(b"x"),
    builtins.eval,
]


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_run(tmp_path, protocol):
    mark = tmp_path / "mark"
    evil = pickle.dumps([{"ann_id": 1, "sentences": Evil(mark)}], protocol)
    (tmp_path / "refs(unc).p").write_bytes(evil)
    with pytest.raises(
        DataError, match=r"refs\(unc\)\.p: its instruction \w+ at byte \d+ is refuse"
    ):
        load_literals(tmp_path / "refs(unc).p")
    assert not mark.exists()
    for value in OBJECTS:
        data = pickle.dumps(value, protocol)
        with pytest.raises(LiteralError, match="is refused"):
            parse_literals(data)


@pytest.mark.parametrize("code", RUNS)
def test_every_instruction_that_names_or_calls_is_refused(code):
    for before in (b"", b"\x80\x02", b"(", b"]", b"cos\nsystem\n(S'x'\nt"):
        with pytest.raises(LiteralError):
            parse_literals(before + code + b"os\nsystem\n(S'x'\ntR.")


def test_every_instruction_of_the_standard_is_known():
    from triptych.data.literals import _ACTIONS

    codes = {op.code.encode("latin-1") for op in pickletools.opcodes}
    assert codes - set(_ACTIONS) - set(RUNS) == {b"."}  # STOP


BOMBS = {
    "a memo of four thousand million places": b"]r\xff\xff\xff\xff.",
    "a text of 2**63 bytes": b"\x8d" + struct.pack("<Q", 2**63) + b"x.",
    "bytes of 2**63 bytes": b"\x8e" + struct.pack("<Q", 2**63) + b"x.",
    "a negative size": b"T\xff\xff\xff\xff.",
    "a number of 5000 digits": b"I" + b"9" * 5000 + b"\n.",
    "a number of 3000 bytes": b"\x8b" + struct.pack("<i", 3000) + b"\x01" * 3000 + b".",
    "a frame beyond the end": b"\x95" + struct.pack("<Q", 2**62) + b".",
    "an unhashable key": b"}]Ns.",
    "an unhashable key in a tuple": b"}]\x85Ns.",
    "an item of no list": b"NNa.",
    "a mark without a group": b"(.",
    "a group without a mark": b"t.",
    "an empty stack": b".",
    "no memo": b"h\x05.",
    "a key without a value": b"(Nd.",
    "protocol 9": b"\x80\x09N.",
    "no quotation marks": b"Sabc\n.",
    "not UTF-8": b"X\x01\x00\x00\x00\xff.",
    "a value that is a mark": b"((t0.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_pickle_is_refused_or_harmless(name):
    try:
        value = parse_literals(BOMBS[name])
    except LiteralError as error:
        assert "pickle" in str(error)
    else:
        assert value in ([], (), None) or name == "a frame beyond the end"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_give_a_value_or_a_refusal(data):
    with suppress(LiteralError):
        parse_literals(data)


@pytest.mark.parametrize("protocol", range(6))
def test_a_truncated_pickle_is_refused(protocol):
    data = pickle.dumps([{"a": [1, "text", 2.5]}, {"b": (None, True)}], protocol)
    for length in range(len(data)):
        with pytest.raises(LiteralError):
            parse_literals(data[:length])


def test_deep_nesting_is_no_recursion():
    value = parse_literals(b"(" * 100_000 + b"l" * 100_000 + b".")
    depth = 0
    while value:
        value, depth = value[0], depth + 1
    assert depth == 99_999
