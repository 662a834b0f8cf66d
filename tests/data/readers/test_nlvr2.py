"""NLVR2 statements about image pairs."""

import json

import pytest

from triptych.core.errors import DataError
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
