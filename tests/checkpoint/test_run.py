"""Checkpoints are complete or absent: killed writes, damage, pruning, older formats."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from triptych.checkpoint import sharded, tensor_file
from triptych.checkpoint.run import list_checkpoints, load_checkpoint, load_latest
from triptych.core.errors import CheckpointError

from .states import save_checkpoint, state_of, write_format_1

TENSORS = "shard_00000-of-00001.safetensors"


def _steps_on_disk(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("background", [False, True])
def test_the_newest_k_stay_in_numeric_order(tmp_path, background):
    for step in (2, 9, 10, 11):
        save_checkpoint(tmp_path, step, state_of(step), keep=2, background=background)
    assert _steps_on_disk(tmp_path) == ["step_10", "step_11"]
    step, state = load_latest(tmp_path)
    assert (step, state["value"]) == (11, 11)
    assert torch.equal(state["modules"]["w"], torch.full((3,), 11.0))


def test_every_mth_stays_beside_the_newest(tmp_path):
    for step in range(1, 12):
        save_checkpoint(tmp_path, step, state_of(step), keep=2, keep_every=4)
    assert list_checkpoints(tmp_path) == [4, 8, 10, 11]


def test_no_checkpoint_is_none(tmp_path):
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "absent") is None


class Killed(BaseException):
    """Stands for kill -9: nothing in the library may act on it."""


def _kill_at_call(monkeypatch, number: int) -> None:
    """Make the `number`-th call that touches the disk, counted from 0, the last."""
    calls = 0

    def wrap(function):
        def counted(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls > number:
                raise Killed
            return function(*args, **kwargs)

        return counted

    monkeypatch.setattr(tensor_file.os, "fsync", wrap(tensor_file.os.fsync))
    monkeypatch.setattr(sharded.shutil, "rmtree", wrap(shutil.rmtree))
    for name in ("rename", "replace", "mkdir", "open", "unlink"):
        monkeypatch.setattr(Path, name, wrap(getattr(Path, name)))


@pytest.mark.parametrize("keep", [1, 2])
def test_a_kill_between_any_two_disk_operations_leaves_a_usable_checkpoint(tmp_path, keep):
    outcomes = []
    for number in range(80):
        folder = tmp_path / str(number)
        save_checkpoint(folder, 1, state_of(1), keep=keep)
        save_checkpoint(folder, 2, state_of(2), keep=keep)
        with pytest.MonkeyPatch.context() as patch:
            _kill_at_call(patch, number)
            try:
                save_checkpoint(folder, 3, state_of(3), keep=keep)
                killed = False
            except Killed:
                killed = True
        step, state = load_latest(folder)
        assert state["value"] == step
        outcomes.append(step)
        save_checkpoint(folder, 4, state_of(4), keep=keep)  # what a resumed run does
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        assert list_checkpoints(folder)[-1] == 4
        if not killed:
            break
    assert not killed
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {2, 3}


def test_a_killed_replacement_of_a_damaged_checkpoint_leaves_the_older_one(tmp_path):
    for number in range(80):
        folder = tmp_path / str(number)
        for step in (1, 2):
            save_checkpoint(folder, step, state_of(step))
        (folder / "step_2" / "state.json").unlink()
        with pytest.MonkeyPatch.context() as patch:
            _kill_at_call(patch, number)
            try:
                save_checkpoint(folder, 2, state_of(2))
                break
            except Killed:
                pass
        assert load_latest(folder)[1]["value"] in (1, 2)
    assert load_latest(folder)[0] == 2


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _flip_last_bit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("damage", [_truncate, _flip_last_bit, Path.unlink])
@pytest.mark.parametrize("name", [TENSORS, "state.json", "checkpoint.json"])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(tmp_path, damage, name):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state_of(step))
    damage(tmp_path / "step_2" / name)
    warnings: list[str] = []
    assert load_latest(tmp_path, warn=warnings.append)[0] == 1
    assert len(warnings) == 1
    assert "step_2" in warnings[0]


def test_later_damaged_checkpoints_go_when_the_resumed_run_saves(tmp_path):
    for step in (1, 5):
        save_checkpoint(tmp_path, step, state_of(step), keep=1 if step == 1 else 2)
    _truncate(tmp_path / "step_5" / TENSORS)
    save_checkpoint(tmp_path, 3, state_of(3), keep=1)
    assert _steps_on_disk(tmp_path) == ["step_3"]


def test_only_damaged_checkpoints_is_an_error(tmp_path):
    save_checkpoint(tmp_path, 1, state_of(1))
    _truncate(tmp_path / "step_1" / "state.json")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
        load_latest(tmp_path)


def test_another_format_and_a_renamed_folder_are_refused(tmp_path):
    path = save_checkpoint(tmp_path, 1, state_of(1))
    with pytest.raises(CheckpointError, match="holds step 1"):
        load_checkpoint(path.rename(tmp_path / "step_8"))
    seal = tmp_path / "step_8" / "checkpoint.json"
    seal.write_text(json.dumps(json.loads(seal.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99, this version reads 1 and 2"):
        load_checkpoint(tmp_path / "step_8")


def test_checkpoints_of_format_1_are_read_and_verified(tmp_path):
    for step in (1, 2):
        write_format_1(tmp_path / f"step_{step}", state_of(step))
    step, state = load_latest(tmp_path)
    assert (step, state["value"]) == (2, 2)
    assert torch.equal(state["modules"]["w"], torch.full((3,), 2.0))
    _flip_last_bit(tmp_path / "step_2" / "tensors.safetensors")
    assert load_latest(tmp_path)[0] == 1
    save_checkpoint(tmp_path, 2, state_of(2))  # the run goes on in the new format
    assert list_checkpoints(tmp_path) == [1, 2]
    assert load_latest(tmp_path)[0] == 2


def test_a_disk_that_refuses_is_a_clear_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file is in the way")
    with pytest.raises(
        CheckpointError, match=r"cannot write checkpoints in .*checkpoints: .*another folder"
    ):
        save_checkpoint(tmp_path / "checkpoints", 1, state_of(1))
