"""Records in columns on disk are the records that the reader gave, and no stale ones."""

import json
import logging
import multiprocessing
import os
import pickle
from dataclasses import fields, replace

import pytest

from triptych.core.errors import DataError
from triptych.data import columns, manifest
from triptych.data.columns import RECORDS, Columns, ColumnWriter
from triptych.data.formats import FORMATS
from triptych.data.index import RecordIndex
from triptych.data.manifest import DataSourceConfig, read_records
from triptych.data.readers.manifests import read_jsonl
from triptych.data.records import (
    ImageSource,
    JoinedRecords,
    Record,
    SelectedRecords,
    kinds_of,
    shard_sizes,
)

EVERYTHING = Record(
    record_id="\udcff",  # a file name that is not UTF-8
    image=ImageSource("s.tar", 512, 2**40, "a.jpg"),
    images=(ImageSource("a.png"), ImageSource("b.png")),
    image_id="7",
    caption="größer",
    question="?",
    answers=("a", "a", "b"),
    question_type="what is",
    answer_type="other",
    ocr_words=("STOP",),
    object_words=("traffic light",),
    phrase="left",
    box=(0.1, 2.0, 1e-7, 4.0),
    statement="s",
    premise="p",
    hypothesis="h",
    label=True,
    text="t",
    video="v.mp4",
    domain="near-domain",
    answers_weight=0.5,
    codes=ImageSource("s.tar", 1024, 10, "a.codes.npy"),
    mask=ImageSource("mask.png"),
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setattr(manifest, "ROWS", 8)


def read_by(patch, read):
    """Let a function read manifests."""
    patch.setitem(FORMATS._entries, "jsonl", replace(FORMATS.get("jsonl"), read=read))


def write(folder, number, **more):
    folder.mkdir(exist_ok=True)
    path = folder / "m.jsonl"
    lines = [{"image": f"{i}.jpg", "caption": f"caption {i}", **more} for i in range(number)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "0.jpg").touch()
    return path


def test_every_field_comes_back_as_it_was(tmp_path):
    assert all(getattr(EVERYTHING, f.name) for f in fields(Record) if f.name != "first_image")
    given = [
        EVERYTHING,
        Record(record_id="1", text="x"),
        Record(record_id="2", image=ImageSource("a.jpg"), image_id="a.jpg", label=0),
        Record(record_id="3", image=ImageSource("a.jpg"), image_id="other", label=0.5),
        Record(record_id="4", text="y", label="name"),
    ]
    writer = ColumnWriter(tmp_path / "x.arrow", RECORDS, {"key": "value"})
    writer.write(given[:2])
    writer.write([])
    writer.write(given[2:])
    writer.close()
    found = Columns(tmp_path / "x.arrow", RECORDS)
    assert list(found) == given == [found[i] for i in range(len(found))]
    assert [type(r.label) for r in found] == [type(r.label) for r in given]
    assert (found[-1], list(found[1:3]), found.about) == (given[-1], given[1:3], {"key": "value"})
    assert list(pickle.loads(pickle.dumps(found))) == given
    with pytest.raises(IndexError):
        found[5]


def test_large_data_goes_to_disk_and_small_data_does_not(tmp_path, rows, cache):
    small = read_records(DataSourceConfig(path=str(write(tmp_path / "a", 7))))
    assert isinstance(small.records, list) and not cache.exists()
    source = DataSourceConfig(path=str(write(tmp_path / "b", 21)))
    large = read_records(source)
    assert isinstance(large.records, RecordIndex)
    memory = read_records(DataSourceConfig(path=source.path, index="never"))
    assert list(large.records) == memory.records and isinstance(memory.records, list)
    assert isinstance(
        read_records(DataSourceConfig(path=str(tmp_path / "a/m.jsonl"), index="always")).records,
        RecordIndex,
    )


def test_a_second_start_does_not_read_the_source(tmp_path, rows, monkeypatch):
    path = write(tmp_path / "d", 20)
    path.write_text(path.read_text() + "{bad\n" * 9 + '{"image": "0.jpg", "caption": ""}\n')
    source = DataSourceConfig(path=str(path))
    first = read_records(source)
    read_by(monkeypatch, lambda config: pytest.fail("the source is read again"))
    second = read_records(source)
    assert list(second.records) == list(first.records) and len(second.records) == 20
    assert list(second.skipped) == list(first.skipped) and len(second.skipped) == 10
    assert second.num_samples == 30
    assert second.records.kinds == {("record_id", "image", "image_id", "caption"): 20}
    assert second.records.kinds == kinds_of(list(second.records))


@pytest.mark.parametrize("change", ["content", "time"])
def test_changed_data_is_read_again(tmp_path, rows, change, caplog):
    path = write(tmp_path / "d", 20)
    source = DataSourceConfig(path=str(path))
    before = read_records(source)
    if change == "content":
        write(tmp_path / "d", 30)
    else:
        os.utime(path, ns=(1, 1))
    with caplog.at_level(logging.WARNING):
        after = read_records(source)
    assert "m.jsonl changed since its index was made" in caplog.text
    assert len(after.records) == (30 if change == "content" else 20)
    assert before.records[19].caption == "caption 19"  # who reads the old one may go on
    assert len(list(after.records._folder.glob("records-*"))) == 1


def test_settings_have_their_own_index(tmp_path, rows):
    path = write(tmp_path / "d", 20)
    first = read_records(DataSourceConfig(path=str(path))).records
    other = DataSourceConfig(path=str(path), image_root=str(tmp_path / "e"))
    (tmp_path / "e").mkdir()
    (tmp_path / "e/0.jpg").touch()
    assert read_records(other).records[0].image.path == str(tmp_path / "e/0.jpg")
    assert read_records(DataSourceConfig(path=str(path), name="x")).records._folder == first._folder


def test_new_files_in_folders_and_beside_annotations_are_seen(tmp_path, rows):
    for name in ("cat/a.jpg", "dog/b.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True)
        (tmp_path / "images" / name).touch()
    source = DataSourceConfig(path=str(tmp_path / "images"), index="always")
    assert len(read_records(source).records) == 2
    (tmp_path / "images/dog/c.jpg").touch()
    assert [r.record_id for r in read_records(source).records][2] == "dog/c.jpg"
    (tmp_path / "images/owl").mkdir()
    (tmp_path / "images/owl/d.jpg").touch()
    assert len(read_records(source).records) == 4


def test_images_that_moved_are_looked_for_again(tmp_path):
    image = {"filename": "a.jpg", "sentences": [{"raw": "a cat", "sentid": 1}]}
    (tmp_path / "k.json").write_text(json.dumps({"images": [image]}))
    (tmp_path / "a.jpg").touch()
    source = DataSourceConfig(path=str(tmp_path / "k.json"), index="always")
    assert read_records(source).records[0].image.path == str(tmp_path / "a.jpg")
    (tmp_path / "images").mkdir()
    (tmp_path / "a.jpg").rename(tmp_path / "images/a.jpg")
    assert read_records(source).records[0].image.path == str(tmp_path / "images/a.jpg")


def test_files_of_one_image_id_are_joined_as_in_memory(tmp_path, rows):
    path = tmp_path / "m.jsonl"
    lines = [{"image": f"{i % 9}.jpg", "image_id": i % 4, "text": "x"} for i in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "0.jpg").touch()
    memory = read_records(DataSourceConfig(path=str(path), index="never")).records
    index = read_records(DataSourceConfig(path=str(path))).records
    assert list(index) == memory == [index[i] for i in range(40)]
    assert sum(record.first_image is not None for record in index) > 20


def _read_in_process(path, number, queue):
    manifest.ROWS = 8
    found = read_records(DataSourceConfig(path=path))
    queue.put((number, [record.record_id for record in found.records]))


def test_processes_that_start_at_once_make_one_index(tmp_path, cache):
    path = write(tmp_path / "d", 3000)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [
        context.Process(target=_read_in_process, args=(str(path), number, queue))
        for number in range(3)
    ]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=60)[1] for _ in workers]
    for worker in workers:
        worker.join()
    assert found == [[str(i + 1) for i in range(3000)]] * 3
    (folder,) = (cache / "index").iterdir()
    assert sorted(p.name.split("-")[0] for p in folder.iterdir()) == [
        ".lock",
        "about.json",
        "joins",
        "records",
        "skipped",
    ]


def test_who_waited_for_an_index_takes_it(tmp_path, rows, monkeypatch, caplog):
    path = write(tmp_path / "d", 20)
    source = DataSourceConfig(path=str(path))
    made = []

    def read_slowly(config):
        if not made:  # another process makes the index while this one reads
            made.append(True)
            made.append(read_records(config))
        yield from read_jsonl(config)

    read_by(monkeypatch, read_slowly)
    found = read_records(source)
    assert list(found.records) == list(made[1].records)
    assert caplog.text.count("making an index") == 1


def test_a_kill_while_an_index_is_made_leaves_nothing_valid(tmp_path, rows, monkeypatch):
    path = write(tmp_path / "d", 20)

    def stop(config):
        for number, record in enumerate(read_jsonl(config)):
            if number == 17:
                raise KeyboardInterrupt
            yield record

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        read_by(patch, stop)
        read_records(DataSourceConfig(path=str(path)))
    assert len(read_records(DataSourceConfig(path=str(path))).records) == 20


def test_a_damaged_index_is_made_again(tmp_path, rows):
    source = DataSourceConfig(path=str(write(tmp_path / "d", 20)))
    folder = read_records(source).records._folder
    (arrow,) = folder.glob("records-*")
    arrow.write_bytes(arrow.read_bytes()[:100])
    assert len(read_records(source).records) == 20


def test_without_a_place_for_it_records_stay_in_memory(tmp_path, rows, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "file"))
    found = read_records(DataSourceConfig(path=str(write(tmp_path / "d", 20))))
    assert isinstance(found.records, list) and len(found.records) == 20
    assert "no index can be kept" in caplog.text


def test_a_full_disk_is_named(tmp_path, rows, monkeypatch):
    def full(self, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ColumnWriter, "write", full)
    with pytest.raises(DataError, match=r"No space left on device.*TRIPTYCH_CACHE"):
        read_records(DataSourceConfig(path=str(write(tmp_path / "d", 20))))


def test_views_hold_no_copy_and_know_their_shards():
    records = [
        Record(record_id=str(i), image=ImageSource(f"{i // 3}.tar", 0, 1, "x")) for i in range(8)
    ]
    chosen = SelectedRecords(records, range(1, 8, 2))
    assert [r.record_id for r in chosen] == ["1", "3", "5", "7"]
    assert [r.record_id for r in chosen[1:3]] == ["3", "5"]
    joined = JoinedRecords([records[:3], records[3:]])
    assert list(joined) == records == [joined[i] for i in range(8)]
    assert (joined[-1], list(joined[2:4])) == (records[-1], records[2:4])
    assert shard_sizes(records) == (3, 3, 2) == shard_sizes(joined)
    assert shard_sizes([*records, Record(record_id="x", text="t")]) is None
    assert shard_sizes([Record(record_id="x", image=ImageSource("a.jpg"))]) is None


def test_many_rows_at_once_are_several_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "ROWS", 4)
    given = [Record(record_id=str(i), text="x" * i) for i in range(11)]
    writer = ColumnWriter(tmp_path / "x.arrow", RECORDS)
    writer.write(given)
    writer.close()
    found = Columns(tmp_path / "x.arrow", RECORDS)
    assert found._starts == [0, 4, 8, 11] and list(found) == given == [found[i] for i in range(11)]
