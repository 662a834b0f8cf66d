"""Visual Genome's files, in their official layout."""

import json

import pytest

from triptych.core.errors import DataError
from triptych.data.manifest import read_records
from triptych.data.skips import SkipKind
from triptych.data.source import DataSourceConfig


def region(region_id, phrase, **more):
    box = {"x": 421, "y": 57, "width": 82, "height": 139}
    return {"region_id": region_id, "image_id": 1, "phrase": phrase, **box, **more}


REGIONS = [
    {"regions": [region(1382, "the clock is green"), region(1383, " shade ", width=0)], "id": 1},
    {"regions": [region(9, ""), "x", {"phrase": "no id"}, region(10, "a tree")], "id": 2},
    {"regions": "none", "id": 3},
    {"id": 2.5, "regions": []},
    {"regions": [], "id": 2},
]
QUESTIONS = [
    {
        "id": 1,
        "qas": [
            {
                "a_objects": [],
                "question": "What color is the clock?",
                "image_id": 1,
                "qa_id": 986768,
                "answer": "Green.",
                "q_objects": [],
            },
            {"question": "Why?", "qa_id": 5, "answer": " . "},
            {"question": "", "qa_id": 6, "answer": "no"},
        ],
    },
]
IMAGES = [
    {
        "width": 800,
        "url": f"https://cs.stanford.edu/people/rak248/{folder}/{number}.jpg",
        "height": 600,
        "image_id": number,
        "coco_id": None,
        "flickr_id": None,
    }
    for number, folder in ((1, "VG_100K_2"), (2, "VG_100K"))
]


@pytest.fixture
def folder(tmp_path):
    for path in ("VG_100K_2/1.jpg", "VG_100K/2.jpg"):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).touch()
    (tmp_path / "region_descriptions.json").write_text(json.dumps(REGIONS))
    (tmp_path / "question_answers.json").write_text(json.dumps(QUESTIONS))
    return tmp_path


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("reader", ["auto", "visual_genome"])
def test_regions_are_captions(folder, listed, reader):
    if listed:
        (folder / "image_data.json").write_text(json.dumps(IMAGES))
    path = str(folder / "region_descriptions.json")
    found = read_records(DataSourceConfig(path=path, reader=reader))
    assert [(r.record_id, r.image_id, r.caption) for r in found.records] == [
        ("1382", "1", "the clock is green"),
        ("1383", "1", "shade"),
        ("10", "2", "a tree"),
    ]
    assert all(r.box is None for r in found.records)
    assert [r.image.path for r in found.records[1:]] == [
        str(folder / "VG_100K_2/1.jpg"),
        str(folder / "VG_100K/2.jpg"),
    ]
    assert [(s.where.split(": ")[1], s.kind) for s in found.skipped] == [
        ("[1].regions[0]", SkipKind.EMPTY_CAPTION),
        ("[1].regions[1]", SkipKind.BAD_RECORD),
        ("[1].regions[2]", SkipKind.MISSING_FIELD),
        ("[2]", SkipKind.MISSING_FIELD),
        ("[3]", SkipKind.MISSING_FIELD),
    ]


def test_regions_are_phrases_with_boxes_where_that_is_asked_for(folder):
    path = str(folder / "region_descriptions.json")
    found = read_records(DataSourceConfig(path=path, reader="visual_genome_phrases"))
    assert [(r.phrase, r.box) for r in found.records] == [
        ("the clock is green", (421.0, 57.0, 82.0, 139.0)),
        ("a tree", (421.0, 57.0, 82.0, 139.0)),
    ]
    assert found.records[0].caption is None
    assert [s.kind for s in found.skipped][:1] == [SkipKind.BAD_BOX]


def test_questions_have_one_answer_of_half_the_weight(folder):
    found = read_records(DataSourceConfig(path=str(folder / "question_answers.json")))
    (record,) = found.records
    assert (record.question, record.answers) == ("What color is the clock?", ("Green",))
    assert (record.answers_weight, record.record_id) == (0.5, "986768")
    assert [s.kind for s in found.skipped] == [SkipKind.BAD_ANSWERS, SkipKind.BAD_RECORD]


def test_an_image_that_is_not_listed_is_skipped_with_its_regions(folder):
    (folder / "image_data.json").write_text(json.dumps(IMAGES[:1]))
    found = read_records(DataSourceConfig(path=str(folder / "region_descriptions.json")))
    assert [r.image_id for r in found.records] == ["1", "1"]
    assert "image 2 is not in image_data.json" in {s.message for s in found.skipped}


def test_images_in_no_known_folder_name_what_was_tried(folder):
    (folder / "VG_100K").rename(folder / "a")
    (folder / "VG_100K_2").rename(folder / "b")
    with pytest.raises(
        DataError, match=r"tried: .*VG_100K/1\.jpg.*VG_100K_2/1\.jpg.*images/1\.jpg"
    ):
        read_records(DataSourceConfig(path=str(folder / "region_descriptions.json")))


def test_a_truncated_file_says_where(folder):
    path = folder / "region_descriptions.json"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(DataError, match=r"region_descriptions\.json:1: not valid JSON"):
        read_records(DataSourceConfig(path=str(path)))
    with pytest.raises(DataError, match="none of its first 2 entries has 'qas'"):
        read_records(DataSourceConfig(path=str(_images(folder)), reader="visual_genome_qa"))


def _images(folder):
    (folder / "image_data.json").write_text(json.dumps(IMAGES))
    return folder / "image_data.json"
