"""Hateful Memes as its authors publish it."""

import json

import pytest

from triptych.core.errors import DataError
from triptych.data.manifest import read_records
from triptych.data.readers.reasoning import read_hateful_memes
from triptych.data.skips import SkipKind
from triptych.data.source import DataSourceConfig


def write(tmp_path, *entries):
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "42953.png").touch()
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return DataSourceConfig(path=str(path))


def meme(**changes):
    return {"id": 42953, "img": "img/42953.png", "label": 0, "text": "its their day"} | changes


def test_memes_with_and_without_labels(tmp_path):
    unlabelled = meme(id=16395)
    del unlabelled["label"]
    source = write(tmp_path, meme(), meme(id=23058, label=1), unlabelled)
    records = read_records(source).records  # recognised by its fields
    assert [(r.record_id, r.label, r.text) for r in records] == [
        ("42953", 0, "its their day"),
        ("23058", 1, "its their day"),
        ("16395", None, "its their day"),
    ]
    assert {str(r.image) for r in records} == {str(tmp_path / "img" / "42953.png")}
    assert all(r.image_id == "img/42953.png" for r in records)


def test_what_is_wrong_is_named(tmp_path):
    entries = (meme(label=2), meme(text=" "), meme(img=None), {"id": 4}, meme())
    source = write(tmp_path, *entries)
    found = read_hateful_memes(source)
    assert len(found.records) == 1
    assert [(s.kind, s.where) for s in found.skipped] == [
        (SkipKind.BAD_LABEL, f"{source.path}:1"),
        (SkipKind.MISSING_FIELD, f"{source.path}:2"),
        (SkipKind.MISSING_FIELD, f"{source.path}:3"),
        (SkipKind.MISSING_FIELD, f"{source.path}:4"),
    ]


def test_another_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="no line has 'id', 'img' and 'text'"):
        read_hateful_memes(write(tmp_path, {"image": "a.jpg", "caption": "a"}))
