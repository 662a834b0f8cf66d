"""The table of data, against counts by hand, and memory that does not grow with the data."""

import json
from pathlib import Path

import pytest

from triptych.cli.main import main
from triptych.data import stats
from triptych.data.records import Record
from triptych.data.source import DataSourceConfig
from triptych.data.stats import DistinctNames, SourceStats, collect_stats, name_digest


def write(path, *entries):
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    return str(path)


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jpg").write_bytes(b"x")
    return tmp_path


def pairs(folder):
    return write(
        folder / "pairs.jsonl",
        {"image": "a.jpg", "caption": ["one two three", "four"]},
        {"image": "b.jpg", "caption": "five six"},
        {"image": "a.jpg", "caption": " "},
    )


def test_images_pairs_and_words_by_source_and_in_total(folder):
    others = write(
        folder / "others.jsonl",
        {"image": "b.jpg", "caption": "a b c d e f"},
        {"image": "c.jpg", "question": "what?", "answers": ["x"]},
        {"image": "c.jpg", "label": "cat"},
        {"images": ["a.jpg", "c.jpg"], "statement": "s", "label": True},
    )
    texts = write(folder / "texts.jsonl", {"text": "one two"}, {"text": "three four five six"})
    rows = collect_stats([
        DataSourceConfig(path=pairs(folder), name="mine"),
        DataSourceConfig(path=others),
        DataSourceConfig(path=texts),
    ])  # fmt: skip
    mine, second, third, total = rows
    assert [row.name for row in rows] == ["mine", "others.jsonl", "texts.jsonl", "total"]
    assert (mine.num_images, mine.num_pairs, mine.words_per_caption) == (2, 3, 2.0)
    assert (mine.num_records, mine.num_skipped) == (3, 1)
    assert (second.num_images, second.num_pairs, second.words_per_caption) == (3, 1, 6.0)
    assert second.others == {"question": 1, "label": 2, "statement": 1}
    assert (third.num_images, third.num_texts, third.words_per_text) == (0, 2, 3.0)
    assert third.words_per_caption is None
    assert (total.num_images, total.num_pairs, total.words_per_caption) == (3, 4, 3.0)
    assert (total.num_records, total.num_skipped, total.num_texts) == (9, 1, 2)
    assert json.loads(json.dumps(total.to_dict()))["words_per_caption"] == 3.0


@pytest.mark.parametrize("room", [50, 170, 10**6])
def test_names_in_buckets_count_as_in_a_set(monkeypatch, room):
    monkeypatch.setattr(stats, "MAX_IN_MEMORY", room)
    names = [f"image {number % 97} {number % 5}" for number in range(600)]
    counter = DistinctNames()
    for name in names:
        counter.add(name_digest(name))
    assert counter.count() == len(set(names)) == counter.count()
    folder = counter._folder
    assert (folder is None) == (room > 600)
    counter.close()
    assert folder is None or not Path(folder.name).exists()
    assert DistinctNames().count() == 0


def test_digests_at_the_ends_of_buckets(monkeypatch):
    monkeypatch.setattr(stats, "MAX_IN_MEMORY", 2)
    counter = DistinctNames()
    for digest in (0, 2**64 - 1, 2**63, 2**63 - 1, 2**58, 2**58 - 1, 0):
        counter.add(digest)
    assert counter.count() == 6
    counter.close()


def test_memory_does_not_grow_with_the_number_of_names(monkeypatch):
    monkeypatch.setattr(stats, "MAX_IN_MEMORY", 1000)
    counter = DistinctNames()
    longest = 0
    for number in range(20_000):
        counter.add(name_digest(str(number)))
        longest = max(longest, len(counter._buffer))  # all else lies on the disk
    count = counter.count()
    counter.close()
    assert count == 20_000
    assert longest <= 1000


def test_clips_and_captions_without_images():
    row = SourceStats(name="x")
    row.add(Record(record_id="0", video="a.mp4", caption="a clip"))
    row.add(Record(record_id="1", caption="a text"))
    assert (row.num_pairs, row.num_texts) == (1, 1)


def test_the_command_prints_a_table_and_json(folder, capsys):
    path = pairs(folder)
    out = folder / "table.json"
    assert main(["data", "stats", f"mine={path}", path, "--out", str(out)]) == 0
    table = capsys.readouterr().out
    assert "words per caption" in table and "mine" in table and "total" in table
    assert "texts" not in table and "labels" not in table
    content = json.loads(out.read_text())
    assert [row["name"] for row in content["sources"]] == ["mine", "pairs.jsonl"]
    assert content["total"]["num_images"] == 2 and content["total"]["num_pairs"] == 6
    assert main(["data", "stats", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"]["num_pairs"] == 3
    assert main(["data", "stats", "pairs.jsonl", "--root", str(folder)]) == 0
    assert "total" not in capsys.readouterr().out  # of one source it would say the same


def test_a_recipe_names_its_sources(folder, capsys):
    assert main(["data", "stats", "mplug.pretrain_14m", "--root", str(folder)]) == 2
    assert "coco/dataset_coco.json: there is no such file" in capsys.readouterr().err
    assert main(["data", "stats", "mplug.pretrain"]) == 2
    assert "mplug.pretrain names no data" in capsys.readouterr().err
    assert main(["data", "stats"]) == 2
    assert "name the datasets to count" in capsys.readouterr().err
