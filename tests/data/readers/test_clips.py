"""MSRVTT, MSVD and VATEX in their official layouts, whole, broken and incomplete."""

import json

import pytest

from triptych.core.errors import DataError
from triptych.data.formats import FORMATS
from triptych.data.manifest import read_records
from triptych.data.readers.clips import read_msrvtt
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


def place(root, text, *clips):
    """Write files by name: texts, values as JSON, and empty clips; return the root."""
    for name, content in text.items():
        plain = content if isinstance(content, str) else json.dumps(content)
        (root / name).write_text(plain)
    for name in clips:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def read(path, **settings):
    return read_records(DataSourceConfig(path=str(path), **settings))


TEST_CSV = """key,vid_key,video_id,sentence
ret0,msr9770,video9770,a person is connecting something to system
ret1,msr9771,video9771,"a little girl, and a dog"
ret2,msr7020,video7020,
"""


def test_1k_a_has_a_sentence_of_each_clip(tmp_path):
    names = [f"videos/video{n}.mp4" for n in (9770, 9771, 7020)]
    root = place(tmp_path, {"MSRVTT_JSFUSION_test.csv": TEST_CSV}, *names)
    found = read(root / "MSRVTT_JSFUSION_test.csv")
    assert [(r.record_id, r.image_id, r.caption) for r in found.records] == [
        ("ret0", "video9770", "a person is connecting something to system"),
        ("ret1", "video9771", "a little girl, and a dog"),
    ]
    assert found.records[0].video == str(tmp_path / "videos/video9770.mp4")
    assert [(s.kind, s.where[-2:]) for s in found.skipped] == [(SkipKind.EMPTY_CAPTION, ":4")]


def test_1k_a_trains_on_listed_clips_with_their_sentences(tmp_path):
    files = {"MSRVTT_train.9k.csv": "video_id\nvideo0\n", "MSRVTT_data.json": DATA}
    root = place(tmp_path, files, "video0.mp4")
    found = read(root / "MSRVTT_train.9k.csv")
    assert [(r.record_id, r.image_id) for r in found.records] == [("5", "video0")]
    (root / "MSRVTT_data.json").unlink()
    with pytest.raises(DataError, match=r"MSRVTT_data.json"):
        read(root / "MSRVTT_train.9k.csv", index="never")


QUESTIONS = [
    {"answer": "couch", "category_id": 14, "id": 7, "question": "what is it?", "video_id": 3},
    {"answer": "", "category_id": 14, "id": 8, "question": "who runs?", "video_id": 3},
    {"answer": "two", "category_id": 14, "id": 9, "question": "How many run?", "video_id": 4},
    {"answer": "two", "category_id": 14, "id": 10, "question": "who?"},
]


def test_msrvtt_qa(tmp_path):
    place(tmp_path, {"test_qa.json": QUESTIONS}, "TrainValVideo/video3.mp4")
    found = read(tmp_path / "test_qa.json")
    asked = [(r.record_id, r.image_id, r.answers, r.question_type) for r in found.records]
    assert asked == [
        ("7", "video3", ("couch",), "what"),
        ("9", "video4", ("two",), "how"),
    ]
    assert found.records[0].video == str(tmp_path / "TrainValVideo/video3.mp4")
    assert [s.kind for s in found.skipped] == [SkipKind.BAD_ANSWERS, SkipKind.BAD_RECORD]


def test_msvd_qa_needs_the_mapping_to_find_its_clips(tmp_path):
    plain = [{k: v for k, v in q.items() if k != "category_id"} for q in QUESTIONS[:1]]
    files = {"val_qa.json": plain, "youtube_mapping.txt": "-4wsuPCjDBc_5_15 vid3\n"}
    place(tmp_path, files, "YouTubeClips/-4wsuPCjDBc_5_15.avi")
    (found,) = read(tmp_path / "val_qa.json").records
    assert found.video == str(tmp_path / "YouTubeClips/-4wsuPCjDBc_5_15.avi")
    (tmp_path / "youtube_mapping.txt").unlink()
    with pytest.raises(DataError, match=r"vid3\.mp4.*Set image_root"):
        read(tmp_path / "val_qa.json", index="never")


DESCRIPTIONS = """# Microsoft Research Video Description Corpus
#
-4wsuPCjDBc_5_15 a squirrel is eating a peanut in it's shell
-4wsuPCjDBc_5_15 a chipmunk eats
-7KMZQEsJW4_205_208 a person slices a flower
no clip
-7KMZQEsJW4_205_208
"""


def test_msvd(tmp_path):
    mapping = "-4wsuPCjDBc_5_15 vid1\n-7KMZQEsJW4_205_208 vid1301\n"
    files = {"AllVideoDescriptions.txt": DESCRIPTIONS, "youtube_mapping.txt": mapping}
    clips = [f"YouTubeClips/{n}.avi" for n in ("-4wsuPCjDBc_5_15", "-7KMZQEsJW4_205_208")]
    path = place(tmp_path, files, *clips) / "AllVideoDescriptions.txt"
    found = read(path)
    assert [r.image_id for r in found.records] == ["-4wsuPCjDBc_5_15"] * 2 + ["-7KMZQEsJW4_205_208"]
    assert [(s.where.rpartition(":")[2], s.kind) for s in found.skipped] == [
        ("6", SkipKind.BAD_RECORD),
        ("7", SkipKind.BAD_RECORD),
    ]
    assert [r.caption for r in read(path, split="test").records] == ["a person slices a flower"]
    assert len(read(path, split="train").records) == 2
    with pytest.raises(DataError, match="no split 'tst'"):
        read(path, split="tst")
    (tmp_path / "youtube_mapping.txt").unlink()
    with pytest.raises(DataError, match=r"'test' needs youtube_mapping\.txt"):
        read(path, split="test", index="never")


VATEX = [
    {"videoID": "Ptf_2VRj-V0_000122_000132", "enCap": ["a man climbs", ""], "chCap": ["x"]},
    {"videoID": "private_clip"},
    {"id": 3},
]


def test_vatex(tmp_path):
    place(tmp_path, {"v.json": VATEX}, "videos/Ptf_2VRj-V0_000122_000132.mp4")
    found = read(tmp_path / "v.json")
    assert [(r.record_id, r.caption) for r in found.records] == [
        ("Ptf_2VRj-V0_000122_000132#0", "a man climbs"),
        ("private_clip", None),
    ]
    assert [s.kind for s in found.skipped] == [SkipKind.EMPTY_CAPTION, SkipKind.MISSING_FIELD]


def test_the_list_says_what_is_missing(tmp_path):
    place(tmp_path, {"AllVideoDescriptions.txt": DESCRIPTIONS}, "YouTubeClips/a.avi")
    (report,) = FORMATS.get("msvd").find(tmp_path)
    assert report.state == "incomplete" and "1 of 1,970 (clips)" in report.missing[0]
    (report,) = FORMATS.get("vatex").find(tmp_path / "none")
    assert report.state == "absent"
