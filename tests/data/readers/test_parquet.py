"""Parquet tables as pyarrow writes them, and as the datasets library lays images out."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.readers.test_webdataset import jpeg
from triptych.cli.main import main
from triptych.core.errors import DataError
from triptych.data import tables
from triptych.data.manifest import DataSourceConfig, read_records
from triptych.data.records import shard_sizes
from triptych.data.skips import SkipKind


def write(path, columns, rows_in_group=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_in_group)
    return path


def read(path, **fields):
    return read_records(DataSourceConfig(path=str(path), **fields))


IMAGES = [jpeg(10 * i) for i in range(8)]


@pytest.mark.parametrize("kind", ["binary", "struct", "large_binary"])
def test_images_in_cells(tmp_path, kind):
    column = {
        "binary": pa.array(IMAGES),
        "large_binary": pa.array(IMAGES, type=pa.large_binary()),
        "struct": pa.array([{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(IMAGES)]),
    }[kind]
    captions = [f"shade {10 * i}" for i in range(8)]
    path = write(tmp_path / "a.parquet", {"image": column, "caption": captions})
    found = read(path)
    assert [r.caption for r in found.records] == captions
    assert [r.record_id for r in found.records] == [str(i) for i in range(8)]
    for i in (7, 0, 4, 3):  # at random
        assert found.records[i].image.read() == IMAGES[i]
    assert len({r.image_id for r in found.records}) == 8
    name = "image.bytes" if kind == "struct" else "image"
    assert str(found.records[4].image) == f"{path}::{name}@1[1]"
    assert shard_sizes(found.records) == (3, 3, 2)  # row groups
    again = read(path, index="always").records
    assert list(again) == found.records and again.shard_sizes == (3, 3, 2)


def test_paths_fields_and_folders_of_tables(tmp_path):
    (tmp_path / "0.jpg").write_bytes(IMAGES[0])
    columns = {
        "image": ["0.jpg", "0.jpg", "0.jpg"],
        "question": ["how many?", "what?", None],
        "answers": [["2", "two"], ["a cat"], None],
        "phrase": [None, None, "the cat"],
        "box": [None, None, [1.0, 2.0, 3.0, 4.0]],
        "split": ["train", "val", "train"],
        "width_px": [1, 2, 3],
    }
    write(tmp_path / "a.parquet", columns)
    write(tmp_path / "b.parquet", {"image": ["0.jpg"], "caption": [["x", "y"]], "id": [7]})
    one, two, three, x, y = read(tmp_path).records
    assert (one.question, one.answers, two.answers) == ("how many?", ("2", "two"), ("a cat",))
    assert (three.phrase, three.box, three.record_id) == ("the cat", (1.0, 2.0, 3.0, 4.0), "a/2")
    assert (x.caption, y.caption, x.record_id) == ("x", "y", "7#0")
    assert one.image.read() == IMAGES[0]
    found = read(tmp_path / "a.parquet", split="val")
    assert [r.question for r in found.records] == ["what?"]
    assert read(tmp_path / "a.parquet").parts == ("train", "val")


def test_images_alone_and_empty_cells(tmp_path):
    found = read(write(tmp_path / "a.parquet", {"image": [*IMAGES[:2], None]}))
    assert [r.caption for r in found.records] == [None] * 3
    captions = ["fine", " ", None]
    found = read(write(tmp_path / "b.parquet", {"image": IMAGES[:3], "caption": captions}))
    assert [r.caption for r in found.records] == ["fine"]
    assert [e.kind for e in found.skipped] == [SkipKind.EMPTY_CAPTION, SkipKind.MISSING_FIELD]
    assert found.skipped[0].where == f"{tmp_path}/b.parquet:1"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"imgae": ["a"], "caption": ["x"]}, "unknown field 'imgae'; did you mean 'image'"),
        ({"a": [1]}, "no known column among a"),
        ({"image": [1], "caption": ["x"]}, "column image is int64: must be paths, bytes"),
    ],
)
def test_other_columns_are_refused(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "a.parquet", columns))


def test_few_row_groups_stay_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_CELL_BYTES", 5000)
    path = write(tmp_path / "a.parquet", {"image": IMAGES, "caption": ["x"] * 8}, rows_in_group=1)
    records = read(path).records
    kept = tables._Tables()
    monkeypatch.setattr(tables, "_tables", kept)
    for record in records:
        assert record.image.read() in IMAGES
        assert 1 <= len(kept._groups) <= 5000 // min(map(len, IMAGES))


def test_data_check_opens_the_images(tmp_path, capsys):
    captions = [f"caption number {i}" for i in range(8)]
    write(tmp_path / "a.parquet", {"image": [*IMAGES[:7], b"no image"], "caption": captions})
    assert main(["data", "check", str(tmp_path / "a.parquet")]) == 1
    said = capsys.readouterr().out
    assert "7 usable of 8" in said and "a.parquet::image@2[1]" in said


def test_the_datasets_library_writes_bytes_or_paths(tmp_path):
    (tmp_path / "c.png").write_bytes(IMAGES[2])
    cells = [
        {"bytes": IMAGES[0], "path": "a.png"},
        {"bytes": None, "path": "c.png"},
        {"bytes": IMAGES[1], "path": None},
        {"bytes": None, "path": None},
    ]
    about = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": cells, "label": [1, 0, -1, 1], "caption": list("wxyz")})
    table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, tmp_path / "train-00000-of-00001.parquet", row_group_size=2)
    found = read_records(DataSourceConfig(path=str(tmp_path / "train-00000-of-00001.parquet")))
    assert [r.label for r in found.records] == ["dog", "cat", None, "dog"]
    assert [r.image.read() for r in found.records] == [IMAGES[0], IMAGES[2], IMAGES[1], b""]
    assert found.records[1].image.path == str(tmp_path / "c.png")


@pytest.mark.parametrize("about", ["{", '{"info": 3}', '{"info": {"features": {"label": {}}}}'])
def test_class_numbers_without_names_stay(tmp_path, about):
    table = pa.table({"image": [b"x"], "label": [1]}).replace_schema_metadata(
        {"huggingface": about}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    (record,) = read_records(DataSourceConfig(path=str(tmp_path / "a.parquet"))).records
    assert record.label == 1
