""".mat files of level 5, against what SciPy wrote and what it makes of ours."""

import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.data.mat_files import write_mat
from triptych.core.errors import DataError
from triptych.data.matlab import load_mat

# scipy.io.savemat (1.17.1, do_compression=True) of the values below
FROM_SCIPY = Path(__file__).parent / "readers/level5.mat"


def test_reads_what_scipy_wrote():
    found = load_mat(FROM_SCIPY)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (4, 3, 3, 5), dtype=np.uint8)
    np.testing.assert_array_equal(found["X"], x)
    assert found["X"].dtype == np.uint8
    np.testing.assert_array_equal(found["y"], [[1], [10], [3], [4], [5]])
    np.testing.assert_array_equal(found["d"], rng.normal(size=(2, 3)))
    np.testing.assert_array_equal(found["i64"], [[2**40, -3]])
    np.testing.assert_array_equal(found["b"], [[1, 0]])
    assert found["empty"].shape == (0, 0)
    assert found["s"] == "hello" and found["z"] == ""
    assert found["names"] == ["ab", "cde", "éf"]
    assert found["rows"] == ["abc", "de "]
    assert found["c"] is None  # complex
    assert [entry["fname"] for entry in found["ann"]] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [int(entry["class"].item()) for entry in found["ann"]] == [1, 2, 3]
    nested = found["ann"][2]["nested"][0]
    np.testing.assert_array_equal(nested["a"], [[0, 1]])
    assert nested["t"] == "xx"


@pytest.mark.parametrize("compressed", [True, False])
def test_reads_both_ways_of_writing(tmp_path, compressed):
    value = {"a": np.arange(6, dtype=np.uint8).reshape(2, 3), "b": ["x", "yz"], "c": [{"n": "ä"}]}
    write_mat(tmp_path / "a.mat", value, compressed)
    found = load_mat(tmp_path / "a.mat")
    np.testing.assert_array_equal(found["a"], value["a"])
    assert found["b"] == value["b"] and found["c"] == value["c"]


def test_cut_files(tmp_path):
    whole = FROM_SCIPY.read_bytes()
    names = list(load_mat(FROM_SCIPY))
    num_errors = 0
    for size in range(0, len(whole), 7):
        path = tmp_path / "cut.mat"
        path.write_bytes(whole[:size])
        try:
            found = list(load_mat(path))
        except DataError as error:
            assert "cut.mat" in str(error)
            num_errors += 1
        else:  # cut between two variables
            assert found == names[: len(found)]
    assert num_errors > len(whole) // 8


def test_changed_bytes_never_raise_anything_else(tmp_path):
    write_mat(tmp_path / "a.mat", {"a": np.arange(6.0), "b": ["x", "yz"], "c": [{"n": "m"}]}, False)
    whole = (tmp_path / "a.mat").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(128, len(whole), 3):
            data[place] = int(rng.integers(256))
        (tmp_path / "b.mat").write_bytes(data)
        with suppress(DataError):
            load_mat(tmp_path / "b.mat")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no .mat file of level 5"),
        (b"MATLAB 7.3 MAT-file, Platform".ljust(600), "7.3.*-v7"),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), "HDF5"),
        (b"PK\x03\x04".ljust(300, b"x"), "begins with b'PK"),
        (b" " * 126 + b"IM" + struct.pack("<II", 14, 4) + b"abcd", "broken or cut short"),
        (b" " * 126 + b"IM" + struct.pack("<II", 15, 4) + b"abcd", "broken or cut short"),
    ],
)
def test_what_is_no_mat_file_says_so(tmp_path, data, message):
    (tmp_path / "a.mat").write_bytes(data)
    with pytest.raises(DataError, match=message):
        load_mat(tmp_path / "a.mat")


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"no such file"):
        load_mat(tmp_path / "a.mat")
