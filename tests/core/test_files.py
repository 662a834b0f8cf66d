import json

import pytest

from triptych.core.files import write_atomic, write_json


def test_content_replaces_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"


def test_json_keeps_letters(tmp_path):
    write_json(tmp_path / "a.json", {"word": "größe"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "größe" in text
    assert json.loads(text) == {"word": "größe"}
