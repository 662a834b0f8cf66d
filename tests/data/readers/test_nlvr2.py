"""NLVR2 statements about image pairs."""

import json

import pytest

from triptych.core.errors import DataError
from triptych.data.manifest import read_records
from triptych.data.readers.reasoning import read_nlvr2
from triptych.data.skips import SkipKind
from triptych.data.source import DataSourceConfig

LINES = [
    {"identifier": "dev-850-0-0", "sentence": "Both are red.", "label": "True"},
    {"identifier": "dev-850-0-1", "sentence": "One is blue.", "label": False},
    {"identifier": "dev-850-0-2", "sentence": "Unlabelled."},
    {"identifier": "dev-850-0-3", "sentence": "Odd.", "label": "perhaps"},
    {"sentence": "No identifier.", "label": "True"},
]


def write(tmp_path):
    path = tmp_path / "dev.json.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return DataSourceConfig(path=str(path))


@pytest.mark.parametrize("folder", ["", "dev/", "images/"])
def test_the_pair_comes_from_the_identifier(tmp_path, folder):
    for side in (0, 1):
        file = tmp_path / f"{folder}dev-850-0-img{side}.png"
        file.parent.mkdir(exist_ok=True)
        file.touch()
    found = read_nlvr2(write(tmp_path))
    assert [(r.record_id, r.label) for r in found.records] == [
        ("dev-850-0-0", True),
        ("dev-850-0-1", False),
        ("dev-850-0-2", None),
    ]
    expected = [str(tmp_path / f"{folder}dev-850-0-img{side}.png") for side in (0, 1)]
    assert [image.path for image in found.records[1].images] == expected
    assert found.records[0].statement == "Both are red."
    assert sorted(entry.kind for entry in found.skipped) == [
        SkipKind.BAD_LABEL,
        SkipKind.MISSING_FIELD,
    ]


def test_missing_images_name_what_was_tried(tmp_path):
    with pytest.raises(DataError, match=r"tried: .*dev-850-0-img0\.png"):
        read_nlvr2(write(tmp_path))


@pytest.mark.parametrize(
    ("name", "line", "image"),
    [
        (
            "train",
            {"identifier": "train-10171-0-0", "directory": 39},
            "images/train/39/train-10171-0",
        ),
        ("dev", {"identifier": "dev-850-0-0"}, "dev/dev-850-0"),
        ("test1", {"identifier": "test1-0-1-0"}, "test1/test1-0-1"),
    ],
)
def test_the_published_folders_are_read_as_they_are(tmp_path, name, line, image):
    """The files are JSON Lines named .json, in `data`; images lie beside that folder."""
    whole = {"sentence": "Both are red.", "label": "True", "synset": "acorn", "query": "x"} | line
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / f"{name}.json"
    path.write_text(f"{json.dumps(whole)}\n{json.dumps(whole | {'sentence': ''})}\n")
    for side in (0, 1):
        file = tmp_path / f"{image}-img{side}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"%d" % side)
    (record,) = read_records(DataSourceConfig(path=str(path))).records
    assert [source.read() for source in record.images] == [b"0", b"1"]
