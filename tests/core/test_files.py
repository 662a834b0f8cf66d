import errno
import json
import re
import subprocess
import sys
from subprocess import PIPE
from types import SimpleNamespace

import pytest

from triptych.cli.main import main
from triptych.core.errors import CheckpointError, ConfigError, DataError
from triptych.core.files import (
    NotWritableError,
    folder_for_one,
    has_entries,
    is_full,
    make_folder,
    placed,
    remove_partials,
    write_atomic,
    write_json,
    writing,
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
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]  # no part of the new one


def test_what_is_placed_is_whole_or_not_there(tmp_path):
    with placed(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "a").write_text("a")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "a").read_text() == "a"
    with pytest.raises(KeyboardInterrupt), placed(tmp_path / "other") as temporary:
        temporary.mkdir()
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_kills_have_left_is_removed(tmp_path):
    for name in (".model.tmp17", ".best.old4"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("a")
    for name in (".a.json.tmp3", "model.tmp17", ".lock", ".tmp_step_3"):
        (tmp_path / name).write_text("a")
    remove_partials(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", ".tmp_step_3", "model.tmp17"]


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, "x"), "No space left on device; free space on the disk"),
        (OSError(errno.EFBIG, "x"), "File too large; free space on the disk"),
        (OSError(errno.EROFS, "x"), "Read-only file system; check the disk and who may write"),
        (OSError(errno.ENOENT, "x"), "No such file or directory; its folder was removed"),
        (OSError("3 requested and 1 written"), "3 requested and 1 written; free space"),
    ],
)
def test_a_disk_that_refuses_is_one_error_that_says_what_to_do(tmp_path, error, advice):
    with (
        pytest.raises(CheckpointError, match=f"^cannot write a thing: {advice}.*resume$") as e,
        writing("a thing", tmp_path, kind=CheckpointError, then="resume"),
    ):
        raise error
    assert e.value.__cause__ is error


def test_a_full_disk_is_told_from_other_errors(tmp_path):
    """Libraries name the cause in their own ways: by a code, in words, or not at all."""
    assert is_full(RuntimeError("faiss: write error: No space left on device"))
    inner = RuntimeError("unexpected pos 704 vs 598")  # torch's, of a file that Python refused
    inner.__context__ = OSError(errno.EFBIG, "File too large")
    assert is_full(inner)
    assert not is_full(RuntimeError("shape mismatch"), tmp_path)
    assert not is_full(PermissionError(errno.EACCES, "no"), tmp_path)
    for kind in (PermissionError(errno.EACCES, "no"), RuntimeError("shape mismatch")):
        with pytest.raises(type(kind)), writing("a thing", tmp_path, only_full=True):
            raise kind
    with pytest.raises(DataError, match="own words"), writing("a thing", tmp_path):
        raise DataError("own words")


def test_the_cause_is_found_before_the_part_that_fills_the_disk_is_removed(tmp_path, monkeypatch):
    """What torch says of a full disk has no code: the free space is looked at in time."""

    def usage(_):
        return SimpleNamespace(free=0 if any(tmp_path.glob(".a.tmp*")) else 2**40)

    monkeypatch.setattr("shutil.disk_usage", usage)
    path = tmp_path / "a"
    with (
        pytest.raises(DataError, match="No space left on device; free space"),
        writing("a", path),
        placed(path) as temporary,
    ):
        temporary.write_text("part")
        raise RuntimeError("PytorchStreamWriter failed writing file")
    assert not list(tmp_path.iterdir())


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


def test_a_file_that_cannot_be_written_is_an_error_with_its_own_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder" / "x").mkdir(parents=True)
    for path in (tmp_path / "file" / "page.html", tmp_path / "folder"):
        with pytest.raises(NotWritableError) as refused:
            write_atomic(path, "page")
        assert refused.value.filename == str(path)

    def run(arguments):
        write_atomic(tmp_path / "folder", "page")

    monkeypatch.setattr("triptych.cli.models.run", run)
    assert main(["models"]) == 2
    told = capsys.readouterr().err
    assert re.match(f"triptych: error: cannot write {tmp_path}/folder: .*another folder", told)


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
