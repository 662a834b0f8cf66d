"""VQAv2 questions and annotations."""

import json

import pytest

from triptych.core.errors import DataError
from triptych.data.readers.vqav2 import read_vqav2
from triptych.data.skips import SkipKind
from triptych.data.source import DataSourceConfig

QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"


def questions(subtype="val2014"):
    return {
        "data_subtype": subtype,
        "questions": [
            {"image_id": 42, "question_id": 42000, "question": "What colour is the cat?"},
            {"image_id": 42, "question_id": 42001, "question": ""},
            {"image_id": 42, "question_id": 42002, "question": "Not annotated?"},
            {"question_id": 42003, "question": "No image?"},
            {"image_id": 42, "question_id": 42004, "question": "How many?"},
        ],
    }


def annotations():
    def entry(own_id, kind, answer_type, words):
        answers = [{"answer": w, "answer_id": i + 1} for i, w in enumerate(words)]
        return {
            "question_id": own_id,
            "image_id": 42,
            "question_type": kind,
            "answer_type": answer_type,
            "answers": answers,
        }

    return {
        "annotations": [
            entry(42000, "what color is the", "other", ["black"] * 7 + ["dark"] * 3),
            entry(42001, "none of the above", "other", ["x"] * 10),
            entry(42004, "how many", "number", []),
        ]
    }


@pytest.mark.parametrize(
    "image",
    [
        "COCO_val2014_000000000042.jpg",
        "val2014/COCO_val2014_000000000042.jpg",
        "000000000042.jpg",
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        "v2_mscoco_val2014_annotations.json",
        "v2_OpenEnded_mscoco_val2014_annotations.json",
    ],
)
def test_questions_find_their_answers_and_images(tmp_path, image, name):
    (tmp_path / image).parent.mkdir(exist_ok=True)
    (tmp_path / image).touch()
    (tmp_path / name).write_text(json.dumps(annotations()))
    found = read_vqav2(questions(), DataSourceConfig(path=str(tmp_path / QUESTIONS)))
    (record,) = found.records
    assert record.image.path == str(tmp_path / image)
    assert (record.record_id, record.image_id) == ("42000", "42")
    assert record.answers == ("black",) * 7 + ("dark",) * 3
    assert (record.question_type, record.answer_type) == ("what color is the", "other")
    assert [(e.where.split(": ")[1], e.kind) for e in found.skipped] == [
        ("questions[3]", SkipKind.MISSING_FIELD),
        ("questions[1]", SkipKind.BAD_RECORD),
        ("questions[2]", SkipKind.BAD_ANSWERS),
        ("questions[4]", SkipKind.BAD_ANSWERS),
    ]


@pytest.mark.parametrize("subtype", ["test2015", "test-dev2015"])
def test_test_questions_have_no_answers(tmp_path, subtype):
    (tmp_path / "COCO_test2015_000000000042.jpg").touch()
    found = read_vqav2(questions(subtype), DataSourceConfig(path=str(tmp_path / "questions.json")))
    assert [r.record_id for r in found.records] == ["42000", "42002", "42004"]
    assert {r.answers for r in found.records} == {()}
    assert found.records[0].image.path == str(tmp_path / "COCO_test2015_000000000042.jpg")


def test_missing_files_name_what_was_tried(tmp_path):
    source = DataSourceConfig(path=str(tmp_path / QUESTIONS))
    with pytest.raises(DataError, match=r"tried: .*v2_mscoco_val2014_annotations\.json"):
        read_vqav2(questions(), source)
    (tmp_path / "own.json").write_text(json.dumps(annotations()))
    source = DataSourceConfig(path=source.path, annotations=str(tmp_path / "own.json"))
    with pytest.raises(DataError, match=r"tried: .*COCO_val2014_000000000042\.jpg"):
        read_vqav2(questions(), source)


def test_a_wrong_annotations_file_is_named(tmp_path):
    (tmp_path / "own.json").write_text("[]")
    source = DataSourceConfig(
        path=str(tmp_path / QUESTIONS), annotations=str(tmp_path / "own.json")
    )
    with pytest.raises(DataError, match=r"own\.json: not a VQAv2 annotations file"):
        read_vqav2(questions(), source)
