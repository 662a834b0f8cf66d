"""COCO captions, official and Karpathy."""

import pytest

from triptych.core.errors import DataError
from triptych.data.readers.coco import is_coco, read_coco, read_karpathy
from triptych.data.skips import SkipKind
from triptych.data.source import DataSourceConfig


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def karpathy():
    def image(number, split, *captions):
        name = f"COCO_val2014_{number:012d}.jpg"
        sentences = [{"raw": c, "sentid": 10 * number + i} for i, c in enumerate(captions)]
        return {
            "filepath": "val2014",
            "filename": name,
            "cocoid": number,
            "split": split,
            "sentences": sentences,
        }

    return {
        "images": [
            image(1, "train", "one", "uno"),
            image(2, "restval", "two"),
            image(3, "val", "three"),
            image(4, "test", "four", ""),
        ]
    }


@pytest.mark.parametrize(
    ("split", "captions"),
    [
        (None, ["one", "uno", "two", "three", "four"]),
        ("train", ["one", "uno", "two"]),
        ("restval", ["two"]),
        ("val", ["three"]),
        ("test", ["four"]),
    ],
)
@pytest.mark.parametrize("folder", ["val2014/", ""])
def test_karpathy_splits(tmp_path, split, captions, folder):
    for number in range(1, 5):
        touch(tmp_path / f"{folder}COCO_val2014_{number:012d}.jpg")
    path = str(tmp_path / "dataset_coco.json")
    found = read_karpathy(karpathy(), DataSourceConfig(path=path, split=split))
    assert [r.caption for r in found.records] == captions
    first = found.records[0]
    number = {"one": 1, "two": 2, "three": 3, "four": 4}[captions[0]]
    assert (first.image_id, first.record_id) == (str(number), str(10 * number))
    assert first.image.path == str(tmp_path / f"{folder}COCO_val2014_{number:012d}.jpg")
    where = [f"{path}: images[3].sentences[1]"] if split in (None, "test") else []
    assert [entry.where for entry in found.skipped] == where


def test_flickr30k_has_no_filepath(tmp_path):
    touch(tmp_path / "flickr30k-images/7.jpg")
    sentences = [{"raw": "x"}, {"raw": "y"}]
    data = {"images": [{"filename": "7.jpg", "imgid": 0, "split": "test", "sentences": sentences}]}
    found = read_karpathy(data, DataSourceConfig(path=str(tmp_path / "f.json"), split="test"))
    assert [r.image_id for r in found.records] == ["0", "0"]
    assert found.records[0].image.path == str(tmp_path / "flickr30k-images/7.jpg")
    assert len({r.record_id for r in found.records}) == 2


def test_karpathy_bad_entries(tmp_path):
    touch(tmp_path / "a.jpg")
    data = {
        "images": [
            {"filename": "a.jpg", "sentences": [{"raw": "x"}, {"raw": 3}, "y", {"raw": " "}]},
            {"sentences": []},
            7,
            {"filename": "a.jpg", "sentences": []},
        ]
    }
    found = read_karpathy(data, DataSourceConfig(path=str(tmp_path / "k.json")))
    assert [r.caption for r in found.records] == ["x"]
    places = {entry.where.split("images")[1]: entry.kind for entry in found.skipped}
    assert places == {
        "[0].sentences[1]": SkipKind.CAPTION_NOT_TEXT,
        "[0].sentences[2]": SkipKind.CAPTION_NOT_TEXT,
        "[0].sentences[3]": SkipKind.EMPTY_CAPTION,
        "[1]": SkipKind.BAD_RECORD,
        "[2]": SkipKind.BAD_RECORD,
        "[3]": SkipKind.EMPTY_CAPTION,
    }


def test_karpathy_errors_say_what_was_found(tmp_path):
    path = str(tmp_path / "k.json")
    with pytest.raises(DataError, match=r"no split 'tets'; did you mean 'test'"):
        read_karpathy(karpathy(), DataSourceConfig(path=path, split="tets"))
    with pytest.raises(DataError, match=r"tried: .*val2014/COCO_val2014_000000000001\.jpg"):
        read_karpathy(karpathy(), DataSourceConfig(path=path))
    with pytest.raises(DataError, match="not a Karpathy file"):
        read_karpathy({"images": []}, DataSourceConfig(path=path))


def official():
    return {
        "images": [{"id": 5, "file_name": "COCO_val2014_000000000005.jpg"}],
        "annotations": [
            {"id": 50, "image_id": 5, "caption": "A cat.\n"},
            {"id": 51, "image_id": 6, "caption": "No such image."},
            {"id": 52, "image_id": 5, "caption": None},
            "not an object",
            {"id": 53, "image_id": 5, "caption": "A pet."},
        ],
    }


@pytest.mark.parametrize("folder", ["", "val2014/", "images/", "val2017/"])
def test_official_captions(tmp_path, folder):
    touch(tmp_path / f"{folder}COCO_val2014_000000000005.jpg")
    found = read_coco(official(), DataSourceConfig(path=str(tmp_path / "c.json")))
    assert [(r.record_id, r.image_id, r.caption) for r in found.records] == [
        ("50", "5", "A cat."),
        ("53", "5", "A pet."),
    ]
    path = str(tmp_path / f"{folder}COCO_val2014_000000000005.jpg")
    assert {r.image.path for r in found.records} == {path}
    assert [(e.where.split(": ")[1], e.kind) for e in found.skipped] == [
        ("annotations[1]", SkipKind.BAD_RECORD),
        ("annotations[2]", SkipKind.CAPTION_NOT_TEXT),
        ("annotations[3]", SkipKind.BAD_RECORD),
    ]


def test_official_file_has_no_split(tmp_path):
    with pytest.raises(DataError, match="split = 'val' is asked for, but the data has no splits"):
        read_coco(official(), DataSourceConfig(path=str(tmp_path / "c.json"), split="val"))


def test_the_list_of_test_images_has_a_record_for_each(tmp_path):
    listed = {
        "info": {"year": 2014},
        "licenses": [{"id": 1}],
        "categories": [],
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 5, "file_name": "5.jpg"}],
    }
    for image in listed["images"]:
        touch(tmp_path / image["file_name"])
    assert is_coco(listed) and not is_coco(listed | {"videos": []})
    assert not is_coco(listed | {"images": [{"id": 7}]})
    found = read_coco(listed, DataSourceConfig(path=str(tmp_path / "image_info_test2014.json")))
    assert [(r.record_id, r.image_id, r.caption) for r in found.records] == [
        ("7", "7", None),
        ("5", "5", None),
    ]
