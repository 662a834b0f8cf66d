"""RefCOCO-style references."""

import json
import pickle
from dataclasses import replace

import pytest

from triptych.core.errors import DataError
from triptych.data.formats import FORMATS
from triptych.data.manifest import read_records
from triptych.data.readers.refcoco import read_refcoco
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


# The literal bytes that Python 2's cPickle.dump(refs, file) writes (protocol 0) for one reference.
PYTHON_2 = b"""(lp1
(dp2
S'sent_ids'
p3
(lp4
I0
asS'file_name'
p5
S'COCO_train2014_000000000009_100.jpg'
p6
sS'ann_id'
p7
I100
sS'sentences'
p8
(lp9
(dp10
S'tokens'
p11
(lp12
S'the'
p13
aS'caf\\xc3\\xa9'
p14
asS'raw'
p15
S'THE caf\\xc3\\xa9'
p16
sS'sent_id'
p17
I0
sS'sent'
p18
S'the caf'
p19
sasS'split'
p20
S'train'
p21
sS'image_id'
p22
I9
sS'ref_id'
p23
L1L
sa."""


@pytest.mark.parametrize("reader", ["auto", "refcoco"])
@pytest.mark.parametrize("name", ["refs(unc).p", "refs(google).p", "refs(umd).p"])
def test_the_published_pickle_is_read(folder, name, reader):
    (folder / name).write_bytes(PYTHON_2)
    (record,) = read_records(DataSourceConfig(path=str(folder / name), reader=reader)).records
    assert (record.record_id, record.phrase) == ("0", "THE café")
    assert record.box == (10.5, 20.0, 100.0, 50.0)
    assert record.image.path == str(folder / "train2014" / NAME)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_and_json_give_the_same(folder, protocol):
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs(), protocol))
    (folder / "refs.json").write_text(json.dumps(refs()))
    source = DataSourceConfig(path=str(folder / "refs(unc).p"))
    found = read_records(source)
    other = read_records(replace(source, path=str(folder / "refs.json")))
    assert found.records == other.records and found.parts == other.parts == ("testA", "train")
    assert [s.message for s in found.skipped] == [s.message for s in other.skipped]
    (folder / "instances.json").unlink()
    with pytest.raises(DataError, match=r"tried: .*instances\.json"):
        read_records(source)


@pytest.mark.parametrize("parent", ["images/mscoco/images", "images/mscoco", "images", "coco"])
def test_images_where_the_refer_toolbox_and_others_have_them(folder, parent):
    own, images = folder / "refcoco", folder / parent
    own.mkdir()
    images.mkdir(parents=True)
    (folder / "instances.json").rename(own / "instances.json")
    (folder / "train2014").rename(images / "train2014")
    (own / "refs(unc).p").write_bytes(PYTHON_2)
    (record,) = read_records(DataSourceConfig(path=str(own / "refs(unc).p"))).records
    assert record.image.read() == b""
    layout = FORMATS.get("refcoco").layouts[0]
    assert layout.find(folder).state == "complete"


def test_one_list_a_billion_times_is_not_written_out(folder):
    many = ["x"]
    for _ in range(60):
        many = [many, many]  # 2**60 times "x", in 61 lists
    own = []
    own.append(own)
    entries = [
        {"ann_id": 100, "image_id": 9, "split": "train", "sentences": [{"raw": many}]},
        {"ann_id": many, "image_id": 9, "split": "train", "sentences": [{"raw": "x"}]},
        {"ann_id": 100, "image_id": own, "split": "train", "sentences": many},
        {"ann_id": 100, "image_id": 9, "split": "train", "sentences": [{"raw": "a cat"}]},
    ]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(entries, 2))
    found = read_records(DataSourceConfig(path=str(folder / "refs(unc).p")))
    assert [r.phrase for r in found.records] == ["a cat"]
    assert len(found.skipped) == 3 and all(len(s.message) < 200 for s in found.skipped)
