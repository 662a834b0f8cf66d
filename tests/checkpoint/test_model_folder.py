"""Model folders: bitwise round trip, tied weights, named errors."""

import hashlib
import shutil
import subprocess

import pytest
import torch
from safetensors import safe_open

from triptych.checkpoint import model_folder
from triptych.checkpoint.model_folder import (
    build_model_card,
    hash_model_folder,
    load_model_folder,
    save_model_folder,
)
from triptych.core.errors import CheckpointError
from triptych.core.outputs import MetricValue


def _save(folder, **changes):
    weight = torch.arange(6.0).reshape(2, 3)
    content = {
        "config": {"model": "toy", "depth": 2},
        "state_dict": {"embed": weight, "head": weight, "scale": torch.tensor(1.5)},
        "tokenizer_json": '{"version": "1.0"}',
        "preprocess": {"image_size": 64, "mean": [0.5, 0.5, 0.5]},
        "card": "# Toy\n",
    }
    return save_model_folder(folder, **content | changes)


def test_round_trip_is_exact_and_ties_are_stored_once(tmp_path):
    folder = _save(tmp_path / "deep" / "model")
    loaded = load_model_folder(folder)
    assert loaded.config == {"model": "toy", "depth": 2}
    assert loaded.preprocess == {"image_size": 64, "mean": [0.5, 0.5, 0.5]}
    assert loaded.card == "# Toy\n"
    assert loaded.tokenizer_path.read_text() == '{"version": "1.0"}'
    assert sorted(loaded.state_dict) == ["embed", "head", "scale"]
    assert torch.equal(loaded.state_dict["head"], torch.arange(6.0).reshape(2, 3))
    assert loaded.state_dict["head"] is loaded.state_dict["embed"]
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == ["embed", "scale"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_model_folder_is_replaced_whole(tmp_path):
    _save(tmp_path / "model")
    _save(tmp_path / "model", config={"model": "other"}, state_dict={"w": torch.ones(2)})
    loaded = load_model_folder(tmp_path / "model")
    assert loaded.config == {"model": "other"}
    assert torch.equal(loaded.state_dict["w"], torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_with_other_files_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"thesis.tex is in the way"):
        _save(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "preprocess.json"]
)
def test_a_missing_file_is_named(tmp_path, name):
    folder = _save(tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_model_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocess.json"])
def test_a_truncated_file_is_named(tmp_path, name):
    folder = _save(tmp_path / "model")
    (folder / name).write_bytes((folder / name).read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=name):
        load_model_folder(folder)


def test_an_absent_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no model folder at .*nowhere"):
        load_model_folder(tmp_path / "nowhere")


def test_the_card_holds_data_recipe_metrics_and_commit():
    metric = MetricValue(
        name="vqa", value=0.71234, low=0.69, high=0.73, num_items=400, protocol="ten answers | min"
    )
    card = build_model_card(
        title="Toy on scenes",
        summary="A toy.",
        data={"scenes": "4,000 built-in images."},
        recipe="train:\n  max_steps: 3\n",
        metrics=[metric],
        commit="abc123",
    )
    assert card.startswith("---\nlibrary_name: triptych\n")
    assert "| vqa | 0.7123 | 0.6900 to 0.7300 | 400 | ten answers / min |" in card
    assert "- **scenes**: 4,000 built-in images." in card
    assert "```yaml\ntrain:\n  max_steps: 3\n```" in card
    assert "commit `abc123`" in card


def test_a_card_without_scores_says_how_to_get_them_and_shows_the_last_losses():
    shared = {"title": "t", "summary": "s", "data": {}, "recipe": "", "commit": None}
    card = build_model_card(
        **shared, metrics=[], losses={"itc": 1.25, "total": 2.5}, evaluation="retrieval"
    )
    command = "triptych eval path/to/this/folder --task retrieval --data TEST_DATA"
    assert f"No held-out data was scored. Score some with `{command}`." in card
    assert "| itc | 1.2500 |\n| total | 2.5000 |" in card
    card = build_model_card(**shared, metrics=[], evaluation=None)
    assert "triptych eval" not in card and "| loss |" not in card


def test_standard_tools_check_the_sums(tmp_path):
    folder = _save(tmp_path / "model", head={"w": torch.ones(2)})
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    names = ["config.json", "head.safetensors", "model.safetensors", "preprocess.json"]
    assert [line.split("  ")[1] for line in lines] == [*names, "tokenizer.json"]
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    if shutil.which("sha256sum"):
        ran = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=folder, check=False)
        assert ran.returncode == 0


@pytest.mark.parametrize(
    "name", ["config.json", "head.safetensors", "model.safetensors", "tokenizer.json"]
)
def test_a_flipped_bit_is_told_by_its_file(tmp_path, name):
    """Also where the file stays readable: a digit of a weight, a letter of a word."""
    folder = _save(tmp_path / "model", head={"w": torch.ones(2)})
    content = bytearray((folder / name).read_bytes())
    content[-6] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}"):
        load_model_folder(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "head.safetensors", "preprocess.json"])
def test_a_file_that_has_grown_to_gigabytes_is_refused_before_it_is_hashed(
    tmp_path, monkeypatch, name
):
    folder = _save(tmp_path / "model", head={"w": torch.ones(2)})
    with (folder / name).open("r+b") as file:
        file.truncate(3 << 30)  # a hole, which takes no room
    monkeypatch.setattr(model_folder, "_sha256", lambda path: pytest.fail(f"hashed {path}"))
    with pytest.raises(CheckpointError, match=name):
        load_model_folder(folder)


def test_a_card_may_be_edited_and_hold_any_bytes(tmp_path):
    folder = _save(tmp_path / "model")
    before = hash_model_folder(folder)
    (folder / "README.md").write_bytes(b"# Mod\xe8le de Jos\xe9\n")
    assert load_model_folder(folder).card == "# Mod\ufffdle de Jos\ufffd\n"
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()
    assert load_model_folder(folder).card == ""
    assert hash_model_folder(folder) == before


def test_a_folder_without_sums_loads_and_is_the_same_model(tmp_path):
    """As Triptych 0.3 wrote it, or as someone who changed it on purpose leaves it."""
    folder = _save(tmp_path / "model")
    before = hash_model_folder(folder)
    (folder / "SHA256SUMS").unlink()
    assert load_model_folder(folder).config == {"model": "toy", "depth": 2}
    assert hash_model_folder(folder) == before


def test_hashing_can_be_left_out(tmp_path, monkeypatch):
    folder = _save(tmp_path / "model")
    (folder / "preprocess.json").write_text('{"image_size": 32}')
    with pytest.raises(CheckpointError, match=r"preprocess\.json is damaged or was changed"):
        load_model_folder(folder)
    monkeypatch.setenv("TRIPTYCH_VERIFY", "0")
    assert load_model_folder(folder).preprocess == {"image_size": 32}


def test_sums_name_what_is_missing_or_was_added(tmp_path):
    folder = _save(tmp_path / "model", head={"w": torch.ones(2)})
    (folder / "head.safetensors").rename(folder / "kept")
    with pytest.raises(CheckpointError, match=r"head\.safetensors is missing: SHA256SUMS lists it"):
        load_model_folder(folder)
    (folder / "kept").rename(folder / "head.safetensors")
    sums = folder / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(line for line in lines if "head" not in line))
    with pytest.raises(CheckpointError, match=r"head\.safetensors is not listed in SHA256SUMS"):
        load_model_folder(folder)
    sums.write_text("nothing\n")
    with pytest.raises(CheckpointError, match="SHA256SUMS is damaged"):
        load_model_folder(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["state_dict", "head"])
def test_weights_that_are_not_finite_are_named(tmp_path, part, value):
    weights = {"good": torch.ones(3), "bad": torch.tensor([1.0, value, 2.0]).bfloat16()}
    folder = _save(tmp_path / "model", **{part: weights})
    with pytest.raises(CheckpointError, match=r"safetensors: bad holds NaN or infinite weights"):
        load_model_folder(folder)
