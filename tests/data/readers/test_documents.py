"""Documents of CCNews and BookCorpus as pieces; long texts of other readers."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from triptych.core.errors import ConfigError, DataError
from triptych.data.manifest import read_records
from triptych.data.source import DataSourceConfig


def read(path, **options):
    return read_records(DataSourceConfig(path=str(path), **options))


def texts(found):
    return [record.text for record in found.records]


STORY = " ".join(f"Sentence {number} has a few words in it." for number in range(60))


def test_a_text_file_of_documents(tmp_path):
    path = tmp_path / "news.txt"
    path.write_text(f"{STORY}\nand a second line.\n\n\nAnother\ndocument. \n  \n")
    found = read(path, reader="documents", max_text_tokens=64)
    ids = [record.record_id for record in found.records]
    pieces = [text for own_id, text in zip(ids, texts(found)) if own_id.startswith("news.txt:0#")]
    assert len(pieces) > 5
    assert " ".join(pieces) == f"{STORY} and a second line."
    assert (ids[-1], found.records[-1].text) == ("news.txt:1#0", "Another document.")
    assert len(set(ids)) == len(ids)


def test_sentences_a_line_fill_pieces(tmp_path):
    path = tmp_path / "books_large_p1.txt"
    lines = [f"he said number {number} ." for number in range(1000)]
    path.write_text("\n".join(lines))
    found = read(path, reader="documents")
    assert " ".join(texts(found)) == " ".join(lines)
    assert 10 < len(found.records) < 20
    assert len(read(path).records) == 1000  # the format `text`: a text a line


def test_a_folder_of_text_files(tmp_path):
    (tmp_path / "b/c").mkdir(parents=True)
    (tmp_path / "b/one.txt").write_text("One.")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "Zero."}))
    (tmp_path / "b/c/two.txt").write_text("\ufeffTwo.\r\n")
    (tmp_path / "notes.md").write_text("no")
    found = read(tmp_path)
    assert texts(found) == ["Zero.", "Two.", "One."]
    ids = [record.record_id for record in found.records]
    assert ids == ["a.jsonl:1#0", "b/c/two.txt:0#0", "b/one.txt:0#0"]


def test_articles_of_news_please(tmp_path):
    path = tmp_path / "ccnews.jsonl"
    entries = [{"maintext": STORY, "title": "T", "date_publish": "2017"}, {"maintext": None}]
    path.write_text("\n".join(map(json.dumps, entries)) + "\n{\n")
    found = read(path)
    assert " ".join(texts(found)) == STORY
    assert [entry.kind.value for entry in found.skipped] == ["bad_record", "bad_json"]
    assert [entry.where for entry in found.skipped] == [f"{path}:2", f"{path}:3"]


def test_articles_of_hugging_face(tmp_path):
    rows = [{"title": "T", "text": STORY, "domain": "a.com", "url": "u", "description": "d"}]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        assert texts(read(tmp_path / name)) == [STORY]
        found = read(tmp_path / name, max_text_tokens=50)
        assert len(found.records) > 5 and " ".join(texts(found)) == STORY


@pytest.mark.parametrize("index", ["never", "always"])
def test_pieces_in_an_index(tmp_path, monkeypatch, index):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text(f"{STORY}\nshort\n")
    counts = [
        len(read(tmp_path / "a.txt", max_text_tokens=length, index=index).records)
        for length in (30, None, 60)
    ]
    assert counts[0] > counts[2] > counts[1] == 2


def test_what_is_no_document_says_so(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good line.\nbad \xff line.\nlast.\n")
    found = read(tmp_path / "a.txt", reader="documents")
    assert texts(found) == ["good line. last."]
    assert found.skipped[0].where == f"{tmp_path / 'a.txt'}:2"
    (tmp_path / "a.txt").write_bytes(b"\n\n")
    with pytest.raises(DataError, match="holds no record"):
        read(tmp_path / "a.txt", reader="documents")
    (tmp_path / "a.txt").write_bytes("x".encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        read(tmp_path / "a.txt", reader="documents")
    with pytest.raises(DataError, match="there is no such file"):
        read(tmp_path / "b.txt", reader="documents")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no file that ends in \.txt"):
        read(tmp_path / "empty", reader="documents")
    with pytest.raises(ConfigError, match="at least 3"):
        read(tmp_path / "a.txt", max_text_tokens=2)
