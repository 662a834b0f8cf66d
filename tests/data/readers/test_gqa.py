"""GQA's questions, in their official layout."""

import json

import pytest

from triptych.core.errors import DataError
from triptych.data.manifest import read_records
from triptych.data.skips import SkipKind
from triptych.data.source import DataSourceConfig


def question(image_id="2354786", **more):
    return {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "sky (2486325)"}],
        "entailed": ["02930160"],
        "equivalent": ["02930152"],
        "question": "Is the sky dark?",
        "imageId": image_id,
        "isBalanced": True,
        "groups": {"global": None, "local": "06-sky_dark"},
        "answer": "yes",
        "semanticStr": "select: sky (2486325)->verify color: dark [0]",
        "annotations": {"answer": {}, "question": {"2": "2486325"}, "fullAnswer": {}},
        "types": {"detailed": "verifyAttr", "semantic": "attr", "structural": "verify"},
        "fullAnswer": "Yes, the sky is dark.",
        **more,
    }


def write(folder, questions, name="val_balanced_questions.json", where="images"):
    (folder / where).mkdir(exist_ok=True)
    (folder / where / "2354786.jpg").touch()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(questions))
    return str(folder / name)


@pytest.mark.parametrize("where", ["images", "."])
def test_questions_have_one_answer_and_their_types(tmp_path, where):
    path = write(tmp_path, {"02930152": question(), "1": question(types=None)}, where=where)
    first, second = read_records(DataSourceConfig(path=path)).records
    assert (first.record_id, first.question, first.answers) == (
        "02930152",
        "Is the sky dark?",
        ("yes",),
    )
    assert (first.question_type, first.answer_type) == ("verify", "attr")
    assert (second.question_type, second.image_id) == (None, "2354786")
    assert first.image.path == str(tmp_path / where / "2354786.jpg")


def test_test_questions_have_no_answers(tmp_path):
    item = {"imageId": "2354786", "question": "Is it?", "isBalanced": True}
    path = write(tmp_path, {"1": item}, "test_all_questions.json")
    (record,) = read_records(DataSourceConfig(path=path)).records
    assert record.answers == ()


def test_a_folder_of_parts_is_one_set(tmp_path):
    for part in range(3):
        name = f"train_all_questions/train_all_questions_{part}.json"
        write(tmp_path, {f"{part}{i}": question() for i in range(2)}, name)
    source = DataSourceConfig(path=str(tmp_path / "train_all_questions"))
    ids = [record.record_id for record in read_records(source).records]
    assert ids == ["00", "01", "10", "11", "20", "21"]


def test_bad_questions_are_skipped(tmp_path):
    questions = {
        "1": question(),
        "2": question(question=None),
        "3": question(imageId=10**30),
        "4": [],
        "5": question(answer=""),
    }
    found = read_records(DataSourceConfig(path=write(tmp_path, questions)))
    assert [r.record_id for r in found.records] == ["1"]
    assert [(s.where[-3:], s.kind) for s in found.skipped] == [
        (": 2", SkipKind.BAD_RECORD),
        (": 3", SkipKind.BAD_RECORD),
        (": 4", SkipKind.BAD_RECORD),
        (": 5", SkipKind.BAD_ANSWERS),
    ]


def test_what_is_wrong_as_a_whole(tmp_path):
    path = write(tmp_path, {"1": question("77")})
    with pytest.raises(DataError, match=r"tried: .*images/77\.jpg, .*77\.jpg"):
        read_records(DataSourceConfig(path=path))
    with pytest.raises(DataError, match="needs question ids to objects with 'question' and"):
        read_records(DataSourceConfig(path=write(tmp_path, [1]), reader="gqa"))
