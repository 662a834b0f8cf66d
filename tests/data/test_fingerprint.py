"""Fingerprints: the same wherever records lie, and a change is named with its place."""

import json
import os
import shutil
from dataclasses import replace

import pytest

from tests.faults.changed_data import read_lines, write_images, write_lines
from triptych.data.fingerprint import PIECE_BYTES, differences, fingerprint
from triptych.data.manifest import read_records
from triptych.data.source import DataSourceConfig


@pytest.fixture
def source(tmp_path):
    write_lines(tmp_path / "a" / "m.jsonl", write_images(tmp_path / "a" / "images", 6))
    return DataSourceConfig(path=str(tmp_path / "a" / "m.jsonl"))


def taken(source, like=None):
    return fingerprint(read_records(source).records, source, like)


def found(before, source):
    records = read_records(source).records
    return differences(before, fingerprint(records, source, before), records)


def test_it_is_json_and_does_not_depend_on_where_records_lie(source):
    plain = taken(source)
    assert json.loads(json.dumps(plain)) == plain
    assert taken(replace(source, index="always")) == plain


def test_moved_and_copied_data_is_the_same(source, tmp_path):
    """Below another folder, under another name, with later times: what was read is the same."""
    before = taken(source)
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere" / "b")
    moved = replace(source, path=str(tmp_path / "elsewhere" / "b" / "m.jsonl"))
    told = found(before, moved)
    assert told.changes == ()
    assert [note.split(" before")[0] for note in told.notes] == [f"was at {source.path}"]


def test_large_files_go_by_their_times_unless_all_are_later(source, tmp_path):
    """Only pieces of a large file are looked at; a copy of the data has later times everywhere."""
    images = sorted((tmp_path / "a" / "images").iterdir())
    for path in images:
        path.write_bytes(bytes(5 * PIECE_BYTES))
    before = taken(source)
    with images[3].open("r+b") as file:
        file.seek(PIECE_BYTES + 5)
        file.write(b"x")
    os.utime(images[3], ns=(0, before["files"]))
    assert found(before, source).changes == (f"{images[3]} has another time, and the same size",)
    for path in images:
        os.utime(path, ns=(0, 5))
    told = found(before, source)
    assert told.changes == ()
    assert told.notes == ("all its files have other times and the same sizes: taken to be copies",)


def test_a_place_is_a_block_of_large_data(tmp_path):
    lines = [{"text": f"sentence {number}"} for number in range(1000)]
    write_lines(tmp_path / "m.jsonl", lines)
    source = DataSourceConfig(path=str(tmp_path / "m.jsonl"))
    before = taken(source)
    assert len(before["blocks"]) == 63
    for number in (700, 300, 310):
        lines[number] = {"text": "another"}
    write_lines(tmp_path / "m.jsonl", lines)
    assert found(before, source).changes == ("texts in records 289 to 304 and 2 other parts",)
    write_lines(tmp_path / "m.jsonl", read_lines(tmp_path / "m.jsonl")[:-1])
    assert found(before, source).changes == (
        "it had 1,000 records and has 999; the first difference is in records 289 to 304",
    )


def test_other_fields_are_told_from_texts(tmp_path):
    lines = [{"question": "what?", "answers": ["a"] * 10, "image": "x.png"}] * 3
    write_lines(tmp_path / "m.jsonl", lines)
    write_images(tmp_path / "images", 1)
    (tmp_path / "images" / "000.bmp").rename(tmp_path / "x.png")
    source = DataSourceConfig(path=str(tmp_path / "m.jsonl"))
    before = taken(source)
    write_lines(tmp_path / "m.jsonl", [*lines[:2], {**lines[2], "answers": ["b"] * 10}])
    assert found(before, source).changes == ("other fields in record 3",)


def test_the_file_of_an_image_that_is_no_path_of_its_own_counts(tmp_path):
    """Two images of a statement lie in the column of other fields."""
    write_images(tmp_path / "images", 2)
    line = {"images": ["images/000.bmp", "images/001.bmp"], "statement": "two", "label": True}
    write_lines(tmp_path / "m.jsonl", [line])
    source = DataSourceConfig(path=str(tmp_path / "m.jsonl"))
    before = taken(source)
    assert before["files"] == 2
    (tmp_path / "images" / "001.bmp").unlink()
    (change,) = found(before, source).changes
    assert change == f"a file is gone: {tmp_path / 'images' / '001.bmp'}"
