"""Ids of the hub become folders; a fake huggingface_hub answers."""

import fnmatch
import sys
import types
from pathlib import Path

import pytest

from triptych.checkpoint.released import find_folder
from triptych.core.errors import CapabilityError, CheckpointError

SAFE, TORCH = "model.safetensors", "pytorch_model.bin"


def fake_hub(monkeypatch, answer):
    """Put a module in huggingface_hub's place whose snapshot_download is `answer`."""
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = answer
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)


def hub_of(folder, *files):
    """Return a snapshot_download that fetches those of `files` that fit the patterns."""
    asked = []

    def download(name, allow_patterns):
        asked.append(name)
        folder.mkdir(exist_ok=True)
        for file in files:
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                (folder / file).write_text("")
        return str(folder)

    return download, asked


@pytest.mark.parametrize(
    ("held", "fetched"),
    [
        (("config.json", "vocab.txt", SAFE, TORCH, "flax.msgpack"), {SAFE}),
        (("config.json", "vocab.txt", TORCH, "README.md"), {TORCH}),
        (("config.json", "vocab.txt", SAFE, "head.safetensors"), {SAFE, "head.safetensors"}),
        (
            ("config.json", "vocab.txt", "model-00001-of-00002.safetensors", TORCH),
            {"model-00001-of-00002.safetensors"},
        ),
    ],
)
def test_torch_weights_are_fetched_only_where_there_are_no_others(
    tmp_path, monkeypatch, held, fetched
):
    download, asked = hub_of(tmp_path / "snapshot", *held)
    fake_hub(monkeypatch, download)
    assert find_folder("facebook/flava-full") == tmp_path / "snapshot"
    assert set(asked) == {"facebook/flava-full"}
    found = {path.name for path in (tmp_path / "snapshot").iterdir()}
    assert found == fetched | {"config.json", "vocab.txt"}


def test_what_exists_or_is_no_id_is_never_asked_for(tmp_path, monkeypatch):
    download, asked = hub_of(tmp_path / "snapshot", SAFE)
    fake_hub(monkeypatch, download)
    (tmp_path / "some" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_folder("some/model") == Path("some/model")
    for name in ("runs/mine/model", str(tmp_path / "no" / "such"), "model", "./model", "../model"):
        assert find_folder(name) == Path(name)
    assert asked == []


def test_a_hub_that_cannot_be_reached_says_so(monkeypatch):
    def fail(name, allow_patterns):
        raise OSError("We couldn't connect to the hub.\nmore")

    fake_hub(monkeypatch, fail)
    with pytest.raises(CheckpointError, match=r"no folder facebook/flava-full.*couldn't connect"):
        find_folder("facebook/flava-full")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CapabilityError, match=r"pip install 'triptych\[hf\]'"):
        find_folder("facebook/flava-full")
