"""Models that are put on the hub and read back, by huggingface_hub against a stand-in."""

import json
import os
import re
import subprocess
import sys

import pytest
from huggingface_hub import constants
from PIL import Image

from tests.checkpoint.hub_server import serve_hub
from tests.serving.tiny_folder import write_tiny_folder, write_tiny_vlmo
from triptych.checkpoint.hub import push_model
from triptych.checkpoint.model_folder import CARD, HEAD, SUMS
from triptych.core.errors import CapabilityError, CheckpointError, ConfigError
from triptych.serving.engine import load
from triptych.tasks.finetuning.image_text_classification import AnswerClassificationConfig

NOBODY = "http://127.0.0.1:9"

STEPS = """
import json, os, sys
from triptych.cli.main import main

for step in json.loads(sys.argv[1]):
    token, arguments = step
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    print("step", main(arguments), flush=True)
"""


def run(endpoint, home, *steps):
    """Run commands, each with its token, in a process that knows this hub; return what each said.

    The library reads HF_ENDPOINT once, where it is imported.
    """
    own = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",  # another protocol of the hub, which needs its own servers
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", STEPS, json.dumps(steps)],
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    parts = re.split(r"^step (\d+)\n", done.stdout, flags=re.MULTILINE)
    return [(int(code), said) for said, code in zip(parts[::2], parts[1::2])]


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """Pushes of all kinds, the hub after them, and what the commands said."""
    folder = tmp_path_factory.mktemp("push")
    with_head = write_tiny_vlmo(folder / "vqa", task=AnswerClassificationConfig(answers=("a", "b")))
    plain = write_tiny_folder(folder / "plain", "captioning")
    (plain / CARD).write_text('---\nlibrary_name: triptych\n---\nload("path/to/this/folder")\n')
    (plain / ".hidden").write_text("not to be sent")
    photo = folder / "a.png"
    Image.new("RGB", (20, 20), "red").save(photo)
    with serve_hub() as (hub, endpoint):
        hub.create("me/public", private=False)
        push = ["push", str(plain)]
        said = run(
            endpoint,
            folder / "home",
            ("writer", ["push", str(with_head), "me/model", "--private", "--message", "One"]),
            ("writer", [*push, "me/model", "--private"]),
            ("writer", [*push, "me/model", "--revision", "v2"]),
            ("reader", ["caption", "me/model@v2", str(photo)]),
            ("writer", [*push, "me/public", "--private"]),
            (None, [*push, "me/other"]),
            ("unknown", [*push, "me/other"]),
            ("reader", [*push, "me/other"]),
            ("writer", [*push, "you/other"]),
            (None, ["caption", "me/model", str(photo)]),
        )
    return hub, plain, said


def test_all_files_are_there_with_the_card_of_the_hub(pushed):
    hub, plain, said = pushed
    assert [code for code, _ in said[:4]] == [0, 0, 0, 0], said
    assert hub.repos["me/model"]["private"] is True
    first, second = list(hub.repos["me/model"]["commits"].values())[1:3]
    assert HEAD in first
    _, files = hub.files("me/model", "main")
    names = {path.name for path in plain.iterdir()} - {".hidden"}
    assert second == files and set(files) == names | {".gitattributes"}  # the old head is gone
    assert {CARD, SUMS} < names
    for name in names - {CARD}:
        assert files[name] == (plain / name).read_bytes()
    assert files[CARD].endswith(b'load("me/model")\n')
    assert {"One", "A Triptych model"} <= set(hub.messages)
    assert 'triptych.load("me/model")' in said[1][1] and "6 files" in said[1][1]
    assert 'triptych.load("me/model@v2")' in said[2][1]
    assert set(hub.repos["me/model"]["branches"]) == {"main", "v2"}


def test_a_model_is_used_by_its_id_and_revision(pushed):
    _, plain, said = pushed
    (photo,) = plain.parent.glob("*.png")
    assert said[3][1].strip() == load(plain, device="cpu").caption(str(photo))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (4, "me/public is public: make it private on the hub first, or omit --private"),
        (5, "there is no token to write to me/other with: run `hf auth login`, or set HF_TOKEN"),
        (6, "the hub does not know the token"),
        (7, "the token may not write there: check the owner's name"),
        (8, "the token may not write there: check the owner's name"),
        (9, "the hub gives no model of that id"),
    ],
)
def test_what_the_hub_refuses_says_what_to_do(pushed, step, message):
    hub, _, said = pushed
    code, text = said[step]
    assert code == 2 and message in text and "Traceback" not in text, text
    assert set(hub.repos) == {"me/model", "me/public"}
    assert set(hub.files("me/public", "main")[1]) == {".gitattributes"}


def test_without_a_network_it_says_so(tmp_path, monkeypatch):
    model = write_tiny_folder(tmp_path / "model", "captioning")
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    monkeypatch.setenv("HF_TOKEN", "writer")
    with pytest.raises(CheckpointError, match=f"{NOBODY} cannot be reached"):
        push_model(model, "me/model")


def test_what_is_no_whole_model_folder_is_refused_before_the_hub_is_asked(tmp_path, monkeypatch):
    model = write_tiny_folder(tmp_path / "model", "captioning")
    for wrong in ("model", "a/b/c", "a/b@c", "../x", "a b/c"):
        with pytest.raises(ConfigError, match="must be OWNER/NAME"):
            push_model(model, wrong)
    with pytest.raises(ConfigError, match="message is empty"):
        push_model(model, "me/model", message=" ")
    with pytest.raises(CheckpointError, match="is not a model folder"):
        push_model(tmp_path, "me/model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CapabilityError, match=r"pip install 'triptych\[hf\]'"):
        push_model(model, "me/model")
    (model / CARD).unlink()
    with pytest.raises(CheckpointError, match=r"has no README\.md: write a model card"):
        push_model(model, "me/model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        push_model(model, "me/model")
