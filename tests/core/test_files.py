import json
import subprocess
import sys
from subprocess import PIPE

import pytest

from triptych.core.errors import ConfigError
from triptych.core.files import (
    folder_for_one,
    has_entries,
    make_folder,
    write_atomic,
    write_json,
)


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


def test_a_folder_is_made_or_what_is_in_the_way_is_named(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"file cannot be a folder: there is a file of that name"):
        make_folder(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"file/x cannot be a folder: Not a directory"):
        make_folder(tmp_path / "file" / "x")
    with pytest.raises(ConfigError, match=r"file is a file, not a folder"):
        has_entries(tmp_path / "file")
    assert [has_entries(tmp_path / name) for name in (".", "a/b", "absent")] == [True, False, False]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ConfigError, match="cannot be written to"):
        make_folder(tmp_path)


def test_a_folder_is_for_one_process_until_it_ends(tmp_path):
    code = "import sys; from pathlib import Path; from triptych.core.files import folder_for_one\n"
    code += "with folder_for_one(Path(sys.argv[1])): print('mine', flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as other:
        assert other.stdout.readline() == "mine\n"
        taken = pytest.raises(ConfigError, match=r"another run is writing to .*run")
        with taken, folder_for_one(tmp_path / "run"):
            pass
        other.kill()  # it cannot tidy up, and need not
        other.wait()
    with folder_for_one(tmp_path / "run"):
        pass
