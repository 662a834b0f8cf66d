"""MSRVTT clips and sentences."""

import pytest

from triptych.core.errors import DataError
from triptych.data.readers.coco import read_msrvtt
from triptych.data.skips import SkipKind
from triptych.data.source import DataSourceConfig

DATA = {
    "videos": [
        {"video_id": "video0", "split": "train"},
        {"video_id": "video1", "split": "validate"},
        {"id": 2},
    ],
    "sentences": [
        {"video_id": "video0", "sen_id": 5, "caption": "a man runs"},
        {"video_id": "video1", "sen_id": 6, "caption": "a dog"},
        {"video_id": "video0", "sen_id": 7, "caption": ""},
        {"video_id": "video9", "sen_id": 8, "caption": "no clip"},
    ],
}


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (None, [("5", "video0"), ("6", "video1")]),
        ("train", [("5", "video0")]),
        ("validate", [("6", "video1")]),
        ("val", [("6", "video1")]),
    ],
)
@pytest.mark.parametrize("folder", ["", "videos/"])
def test_sentences_find_their_clips(tmp_path, split, expected, folder):
    for name in ("video0", "video1"):
        (tmp_path / f"{folder}{name}.mp4").parent.mkdir(exist_ok=True)
        (tmp_path / f"{folder}{name}.mp4").touch()
    found = read_msrvtt(DATA, DataSourceConfig(path=str(tmp_path / "d.json"), split=split))
    assert [(r.record_id, r.image_id) for r in found.records] == expected
    assert [r.video for r in found.records] == [
        str(tmp_path / f"{folder}{name}.mp4") for _, name in expected
    ]
    kinds = {entry.where.split(": ")[1]: entry.kind for entry in found.skipped}
    assert kinds["videos[2]"] is SkipKind.MISSING_FIELD
    assert kinds["sentences[3]"] is SkipKind.BAD_RECORD
    assert kinds.get("sentences[2]") == (
        SkipKind.EMPTY_CAPTION if split in (None, "train") else None
    )


def test_an_unknown_split_lists_those_that_exist(tmp_path):
    with pytest.raises(DataError, match=r"no split 'tests'.*found: train, validate"):
        read_msrvtt(DATA, DataSourceConfig(path=str(tmp_path / "d.json"), split="tests"))
