"""RefCOCO-style references."""

import json

import pytest

from triptych.core.errors import DataError
from triptych.data.readers.refcoco import read_refcoco, reject_pickle
from triptych.data.skips import SkipKind
from triptych.data.source import DataSourceConfig

NAME = "COCO_train2014_000000000009.jpg"


def refs():
    def ref(ref_id, ann_id, split, *sentences, image_id=9):
        return {
            "ref_id": ref_id,
            "ann_id": ann_id,
            "image_id": image_id,
            "split": split,
            "file_name": f"COCO_train2014_000000000009_{ann_id}.jpg",
            "sentences": [{"sent_id": 10 * ref_id + i, **s} for i, s in enumerate(sentences)],
        }

    return [
        ref(1, 100, "train", {"raw": "The left cat", "sent": "left cat"}, {"sent": "black cat"}),
        ref(2, 101, "testA", {"raw": "man"}),
        ref(3, 102, "train", {"raw": "flat"}),
        ref(4, 999, "train", {"raw": "no annotation"}),
        ref(5, 100, "train", {"raw": "no image"}, image_id=77),
        ref(6, 100, "train", {"raw": ""}),
    ]


@pytest.fixture
def folder(tmp_path):
    instances = {
        "images": [{"id": 9, "file_name": NAME, "width": 640, "height": 480}],
        "annotations": [
            {"id": 100, "image_id": 9, "bbox": [10.5, 20, 100, 50]},
            {"id": 101, "image_id": 9, "bbox": [0, 0, 5, 5]},
            {"id": 102, "image_id": 9, "bbox": [0, 0, 5, 0]},
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    (tmp_path / "train2014").mkdir()
    (tmp_path / "train2014" / NAME).touch()
    return tmp_path


def test_each_sentence_is_a_record(folder):
    source = DataSourceConfig(path=str(folder / "refs.json"), split="train")
    found = read_refcoco(refs(), source)
    assert [(r.record_id, r.phrase) for r in found.records] == [
        ("10", "The left cat"),
        ("11", "black cat"),
    ]
    assert {r.box for r in found.records} == {(10.5, 20.0, 100.0, 50.0)}
    assert {r.image.path for r in found.records} == {str(folder / "train2014" / NAME)}
    kinds = {entry.where.split(": ")[1]: entry.kind for entry in found.skipped}
    assert kinds == {
        "[2]": SkipKind.BAD_BOX,
        "[3]": SkipKind.BAD_RECORD,
        "[4]": SkipKind.BAD_RECORD,
        "[5].sentences[0]": SkipKind.BAD_RECORD,
    }


def test_other_splits(folder):
    source = DataSourceConfig(path=str(folder / "refs.json"), split="testA")
    assert [r.phrase for r in read_refcoco(refs(), source).records] == ["man"]
    with pytest.raises(DataError, match=r"no split 'testB'.*testA"):
        read_refcoco(refs(), DataSourceConfig(path=str(folder / "refs.json"), split="testB"))


def test_missing_instances_say_where_they_were_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"tried: .*instances\.json"):
        read_refcoco(refs(), DataSourceConfig(path=str(tmp_path / "refs.json")))


@pytest.mark.parametrize("name", ["refs(unc).p", "refs.pkl"])
def test_a_pickle_is_refused_with_a_way_out(tmp_path, name):
    with pytest.raises(DataError, match=r"convert it once: python -c"):
        reject_pickle(tmp_path / name)
