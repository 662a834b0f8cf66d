"""The door to data on disk: which reader is taken, and what stops early."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.core.errors import ConfigError, DataError
from triptych.data.entries import EntryError, parse_answers, parse_box, parse_entry
from triptych.data.manifest import DataSourceConfig, read_records
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped


def entries(fields):
    return list(parse_entry(fields, record_id="1", where="m:1", locate=ImageSource))


CASES = {
    "m.jsonl": ('{"text": "a"}', "text"),
    "m.csv": ("text,image\na,", "text"),
    "m.tsv": ("text\timage\na\t", "text"),
    "m.txt": ("a", "text"),
    "m.json": ('[{"text": "a"}]', "text"),
    "lines.json": ('{"text": "a"}\n{"text": ""}\n', "text"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_reader_is_found_by_suffix(tmp_path, name):
    content, field = CASES[name]
    (tmp_path / name).write_text(content)
    records = read_records(DataSourceConfig(path=str(tmp_path / name))).records
    assert [getattr(record, field) for record in records] == ["a"]


JSON_CASES = {
    "karpathy": ({"images": [{"filename": "1.jpg", "sentences": [{"raw": "x"}]}]}, "caption"),
    "coco": (
        {
            "images": [{"id": 1, "file_name": "1.jpg"}],
            "annotations": [{"id": 9, "image_id": 1, "caption": "x"}],
        },
        "caption",
    ),
    "vqav2": (
        {
            "data_subtype": "test2015",
            "questions": [{"question_id": 3, "image_id": 1, "question": "x"}],
        },
        "question",
    ),
    "msrvtt": (
        {"videos": [{"video_id": "1"}], "sentences": [{"video_id": "1", "caption": "x"}]},
        "caption",
    ),
}


@pytest.mark.parametrize("name", JSON_CASES)
@pytest.mark.parametrize("by_name", [False, True])
def test_json_is_told_by_its_content(tmp_path, name, by_name):
    for file in ("1.jpg", "000000000001.jpg", "1.mp4"):
        (tmp_path / file).touch()
    content, field = JSON_CASES[name]
    (tmp_path / "data.json").write_text(json.dumps(content))
    reader = name if by_name else "auto"
    source = DataSourceConfig(path=str(tmp_path / "data.json"), reader=reader)
    assert [getattr(record, field) for record in read_records(source).records] == ["x"]


def test_a_json_file_of_another_kind_names_its_keys(tmp_path):
    (tmp_path / "data.json").write_text('{"info": {}, "licenses": []}')
    with pytest.raises(DataError, match=r"data\.json: not a format.*found the keys info, licenses"):
        read_records(DataSourceConfig(path=str(tmp_path / "data.json")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.feather", "x", r"cannot tell the format from the suffix '\.feather'"),
        ("data.parquet", "x", r"data\.parquet: is not a parquet table"),
        ("data.jsonl", "", "holds no record"),
        ("data.jsonl", "{bad\n[1]\n", "none of its 2 entries is usable"),
        ("data.json", '{"a": ', r"data\.json:1: not valid JSON"),
        ("data.json", '{"text": "a"} {"text": "b"}', "is it JSON Lines"),
        ("refs(unc).p", "x", r"refs\(unc\)\.p: is not a pickle.*plain values"),
        ("words.pkl", "x", r"words\.pkl: a pickled file is not loaded.*any code"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_records(DataSourceConfig(path=str(tmp_path / name)))


def test_a_missing_file_lists_what_lies_there(tmp_path):
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(DataError, match=r"trian\.jsonl: there is no such file.*train\.jsonl"):
        read_records(DataSourceConfig(path=str(tmp_path / "trian.jsonl")))


def test_an_empty_folder_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match="the folder is empty"):
        read_records(DataSourceConfig(path=str(tmp_path)))


def test_a_wrong_image_root_shows_at_once(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"image": "a.jpg", "caption": "x"}\n' * 100)
    with pytest.raises(DataError, match=r"none of the 16 images.*a\.jpg.*image_root"):
        read_records(DataSourceConfig(path=str(tmp_path / "m.jsonl")))


def test_an_unknown_reader_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'karpathy'"):
        DataSourceConfig(path="a.json", reader="karpaty")


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"image": "a", "caption": ""}, SkipKind.EMPTY_CAPTION),
        ({"image": "a", "caption": " \n"}, SkipKind.EMPTY_CAPTION),
        ({"image": "a", "caption": None}, SkipKind.EMPTY_CAPTION),
        ({"image": "a", "caption": []}, SkipKind.EMPTY_CAPTION),
        ({"image": "a", "caption": 3}, SkipKind.CAPTION_NOT_TEXT),
        ({"image": "a", "caption": {"en": "x"}}, SkipKind.CAPTION_NOT_TEXT),
        ({"image": "a", "caption": "\ud800"}, SkipKind.CAPTION_NOT_TEXT),
        ({"caption": "x"}, SkipKind.MISSING_FIELD),
        ({"image": "a"}, SkipKind.MISSING_FIELD),
        ({}, SkipKind.MISSING_FIELD),
        ({"image": 3, "caption": "x"}, SkipKind.BAD_RECORD),
        ({"image": "a", "question": 5}, SkipKind.BAD_RECORD),
        ({"image": "a", "question": "q", "answers": [""]}, SkipKind.BAD_ANSWERS),
        ({"image": "a", "question": "q", "answers": {"a": 1}}, SkipKind.BAD_ANSWERS),
        ({"image": "a", "answers": ["x"]}, SkipKind.MISSING_FIELD),
        ({"image": "a", "question": "q", "ocr_words": 3}, SkipKind.BAD_RECORD),
        ({"image": "a", "question": "q", "object_words": ["a", " "]}, SkipKind.BAD_RECORD),
        ({"image": "a", "caption": "c", "box": [0, 0, 5, 5]}, SkipKind.MISSING_FIELD),
        ({"image": "a", "phrase": "p", "box": [0, 0, 0, 5]}, SkipKind.BAD_BOX),
        ({"image": "a", "phrase": "p", "box": [0, 0, 5, -1]}, SkipKind.BAD_BOX),
        ({"image": "a", "phrase": "p", "box": [0, 0, 5]}, SkipKind.BAD_BOX),
        ({"image": "a", "phrase": "p", "box": [0, 0, 5, float("nan")]}, SkipKind.BAD_BOX),
        ({"image": "a", "phrase": "p", "box": [0, 0, 5, 10**400]}, SkipKind.BAD_BOX),
        ({"image": "a", "phrase": "p", "box": "0 0 5 5"}, SkipKind.BAD_BOX),
        ({"images": ["a"], "statement": "s"}, SkipKind.MISSING_FIELD),
        ({"images": "a", "statement": "s"}, SkipKind.BAD_RECORD),
        ({"images": ["a", "b"], "statement": "s", "label": "maybe"}, SkipKind.BAD_LABEL),
        ({"hypothesis": "h"}, SkipKind.MISSING_FIELD),
        ({"image": "a", "hypothesis": "h", "label": "entails"}, SkipKind.BAD_LABEL),
        ({"image": "a", "label": [1]}, SkipKind.BAD_LABEL),
        ({"label": "cat"}, SkipKind.MISSING_FIELD),
    ],
)
def test_a_bad_entry_is_skipped_by_kind(fields, kind):
    (skipped,) = entries(fields)
    assert isinstance(skipped, Skipped)
    assert (skipped.kind, skipped.where) == (kind, "m:1")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"image": "a", "caption": " x "}, {"caption": "x", "image_id": "a"}),
        ({"image": "a", "caption": "x", "image_id": 7}, {"image_id": "7"}),
        ({"image": "a", "caption": "x", "id": 12}, {"record_id": "12"}),
        ({"image": "a", "question": "q"}, {"answers": ()}),
        ({"image": "a", "question": "q", "answers": "yes"}, {"answers": ("yes",)}),
        ({"image": "a", "question": "q", "answers": [2, "two"]}, {"answers": ("2", "two")}),
        ({"image": "a", "question": "q", "answers": [{"answer": "no"}]}, {"answers": ("no",)}),
        (
            {"image": "a", "question": "q", "ocr_words": "route 66", "object_words": ["a b", "c"]},
            {"ocr_words": ("route", "66"), "object_words": ("a b", "c")},
        ),
        ({"image": "a", "question": "q", "ocr_words": []}, {"ocr_words": (), "object_words": ()}),
        ({"image": "a", "phrase": "p", "box": [1, 2, 3, 4.5]}, {"box": (1.0, 2.0, 3.0, 4.5)}),
        ({"image": "a", "phrase": "p"}, {"phrase": "p", "box": None}),  # to be predicted
        ({"images": ["a", "b"], "statement": "s", "label": "False"}, {"label": False}),
        ({"images": ["a", "b"], "statement": "s", "label": 1}, {"label": True}),
        ({"premise": "p", "hypothesis": "h", "label": "Neutral"}, {"label": "neutral"}),
        ({"image": "a", "label": "cat"}, {"label": "cat"}),
        ({"image": "a", "label": 0}, {"label": 0}),
        ({"text": "t"}, {"text": "t", "image": None}),
        ({"video": "v.mp4", "caption": "x"}, {"video": "v.mp4"}),
        ({"image": "a", "caption": "x", "url": "http://x", "width": 3}, {"caption": "x"}),
    ],
)
def test_a_good_entry_gives_its_record(fields, expected):
    (record,) = entries(fields)
    assert isinstance(record, Record)
    assert {name: getattr(record, name) for name in expected} == expected


def test_a_list_of_captions_gives_records_of_one_image():
    first, bad, third = entries({"image": "a", "caption": ["x", "", "z"]})
    assert (first.caption, third.caption) == ("x", "z")
    assert first.image_id == third.image_id == "a"
    assert first.record_id != third.record_id
    assert (bad.kind, bad.where) == (SkipKind.EMPTY_CAPTION, "m:1: caption[1]")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON_VALUES = (
    SCALARS | st.lists(SCALARS, max_size=4) | st.dictionaries(st.text(max_size=3), SCALARS)
)
NAMES = st.sampled_from(
    (
        *("id", "image", "images", "caption", "question", "answers", "phrase", "box", "video"),
        *("statement", "premise", "hypothesis", "label", "text", "image_id", "own"),
    )
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(NAMES, JSON_VALUES, max_size=6))
def test_any_json_object_gives_records_or_skips(fields):
    found = entries(fields)
    assert found
    for entry in found:
        assert isinstance(entry, Skipped) or any(
            getattr(entry, name) is not None
            for name in (
                "caption",
                "question",
                "phrase",
                "statement",
                "hypothesis",
                "label",
                "text",
            )
        )


@settings(max_examples=50, deadline=None)
@given(JSON_VALUES)
def test_boxes_and_answers_never_fail_otherwise(value):
    for parse in (parse_box, parse_answers):
        try:
            parse(value)
        except EntryError as error:
            assert error.kind in (SkipKind.BAD_BOX, SkipKind.BAD_ANSWERS)


def test_a_manifest_of_images_alone_is_read(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jpg").touch()
    path = tmp_path / "m.jsonl"
    path.write_text('{"image": "a.jpg"}\n{"image": "b.jpg", "id": "second"}\n')
    records = read_records(DataSourceConfig(path=str(path))).records
    assert [(r.record_id, r.image_id, r.caption) for r in records] == [
        ("1", str(tmp_path / "a.jpg"), None),
        ("second", str(tmp_path / "b.jpg"), None),
    ]


def test_an_image_alone_among_captions_is_skipped(tmp_path):
    (tmp_path / "a.jpg").touch()
    path = tmp_path / "m.jsonl"
    path.write_text('{"image": "a.jpg", "caption": "x"}\n{"image": "a.jpg"}\n')
    found = read_records(DataSourceConfig(path=str(path)))
    assert [r.caption for r in found.records] == ["x"]
    assert [(s.kind, s.where) for s in found.skipped] == [(SkipKind.MISSING_FIELD, f"{path}:2")]
