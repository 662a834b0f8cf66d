"""Files of others: what is refused by name, and what parsers raise as one error."""

import gzip
import os
import socket
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from triptych.core.config import load_yaml
from triptych.core.errors import CheckpointError, ConfigError, DataError
from triptych.core.reading import (
    UnreadableFileError,
    cannot_read,
    check_regular,
    open_regular,
    open_text,
    open_zip,
    parse_yaml,
    read_bytes,
    read_json,
    read_json_object,
    read_text,
    read_yaml,
    reading,
)
from triptych.data.source import DataSourceConfig


@pytest.fixture
def pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("read", [check_regular, open_regular, open_text, read_bytes])
def test_a_pipe_a_device_and_a_folder_are_refused_by_name(read, pipe, tmp_path):
    for path, what in (
        (pipe, "is a named pipe, not a regular file"),
        (Path("/dev/zero"), "is a device, not a regular file"),
        (tmp_path, "is a folder, not a file"),
    ):
        with pytest.raises(OSError, match=what) as caught:
            read(path)
        assert str(cannot_read(path, caught.value)) == f"{path}: {what}"


def test_a_socket_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket may have 107 bytes
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        with pytest.raises(UnreadableFileError, match="is a socket"):
            read_bytes("socket")


def test_a_link_is_followed_to_what_it_names(pipe, tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    (tmp_path / "file").write_bytes(b"content")
    good.symlink_to("file")
    bad.symlink_to(pipe)
    assert read_bytes(good) == b"content"
    with pytest.raises(UnreadableFileError, match="named pipe"):
        read_bytes(bad)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(2**40)  # without a block on the disk
    tracemalloc.start()
    try:
        with pytest.raises(
            DataError, match=r"large: has 1.02e\+03 GiB, and at most 64 MiB is read"
        ):
            read_text(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_file_that_grows_meanwhile_is_not_read_whole():
    assert Path("/proc/cpuinfo").stat().st_size == 0  # a file without a known size stands for it
    with pytest.raises(UnreadableFileError, match="at most"):
        read_bytes("/proc/cpuinfo", max_bytes=10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": [1,\n2,}', ":2: not valid JSON at column 3"),
        (b"[" * 100_000, "nests too deeply"),
        (b'{"a":\n"\xff"}', ":2: not UTF-8 at byte 7"),
        (b"9" * 5000, "cannot be used as it is: ValueError: Exceeds the limit"),
        (b"\xff\xfe[\0]\0", "is UTF-16 text"),
        (b"{}\n{}", "is it JSON Lines"),
        (b"", ":1: not valid JSON"),
    ],
)
def test_json_that_cannot_be_used_names_the_file_and_the_line(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_json(path, error=CheckpointError)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}
    assert read_json_object(path) == {"a": 1}
    path.write_text("[1]")
    with pytest.raises(DataError, match=r"expected an object {...}, found list"):
        read_json_object(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1,\nb: 2", ":2: not valid YAML"),
        ("[" * 5000, "nests too deeply"),
        ("a: &a [*a]", "a value holds itself"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: \0", "not valid YAML"),
        ("a: " + "9" * 5000, "cannot be used as it is"),
        ("? {a: 1}\n: 2", "unhashable"),
    ],
)
def test_yaml_that_cannot_be_used_names_the_file(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_yaml(DataSourceConfig, path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line", ["[{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}]", "{{<<: [{0}, {0}]}}"]
)
def test_aliases_are_counted_before_they_multiply(tmp_path, line):
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{n}: &a{n} {line.format(f'*a{n - 1}')}" for n in range(1, 60)]
    path = tmp_path / "laughs.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="more than 100000 values, aliases counted"):
        read_yaml(path)


def test_a_value_may_be_used_again():
    assert parse_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}") == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": {"x": 1, "y": 2},
    }
    assert parse_yaml("") is None


def test_a_zip_is_measured_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10_000_000))
    assert path.stat().st_size < 20_000
    with (
        pytest.raises(DataError, match=r"has 9.54 MiB, and at most 1 MiB is read .* unpacked"),
        open_zip(path, max_bytes=2**20),
    ):
        pass
    with open_zip(path, max_bytes=2**24) as archive:
        assert archive.namelist() == ["zeros"]


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(10), b"junk" * 100])
def test_what_is_no_zip_names_the_file(tmp_path, content):
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.zip: is no zip archive"), open_zip(path, max_bytes=1):
        pass


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (KeyError("images"), "a: cannot be used as it is: KeyError: 'images'"),
        (OverflowError(), "a: cannot be used as it is: OverflowError"),
        (MemoryError(), "a: does not fit into the memory"),
        (gzip.BadGzipFile("junk"), "a: is no gzip file: junk"),
        (PermissionError(13, "Permission denied"), "a: cannot be read: Permission denied"),
    ],
)
def test_whatever_is_raised_names_the_file(problem, message):
    with pytest.raises(DataError, match=message), reading("a"):
        raise problem


def test_our_errors_and_ctrl_c_pass():
    for problem in (ConfigError("ours"), KeyboardInterrupt()):
        with pytest.raises(type(problem)) as caught, reading("a"):
            raise problem
        assert caught.value is problem


def test_a_missing_file_lists_its_neighbours(tmp_path):
    (tmp_path / "b.json").touch()
    with pytest.raises(DataError, match=r"there is no such file; .* holds: b.json"):
        read_json(tmp_path / "a.json")
    with pytest.raises(DataError, match="there is no such file, and no folder"):
        read_json(tmp_path / "c" / "a.json")
