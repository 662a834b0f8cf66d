"""Saving in the background, by several processes, onto bad disks; reading on other numbers."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, _hf_utils
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from triptych.checkpoint import run, sharded
from triptych.checkpoint.run import list_checkpoints, load_checkpoint, load_latest
from triptych.checkpoint.sharded import CheckpointWriter
from triptych.core.errors import CheckpointError
from triptych.distributed.env import rank, run_processes, world_size

from .states import save_checkpoint, state_of


def test_what_is_saved_in_the_background_is_a_copy(tmp_path):
    writer = CheckpointWriter(tmp_path, keep=9, background=True)
    state = state_of(1)
    for step in (1, 2):  # the second time, the copy goes into kept memory
        state["modules"]["w"].fill_(step)
        state["value"] = step
        writer.save(step, state)
        state["modules"]["w"].fill_(77)  # training goes on
        state["value"] = 77
    assert writer.finish(wait=True) == tmp_path / "step_2"
    for step in (1, 2):
        saved = load_checkpoint(tmp_path / f"step_{step}")
        assert saved["value"] == step
        assert torch.equal(saved["modules"]["w"], torch.full((3,), float(step)))


def test_finish_tells_when_a_background_save_is_sealed(tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path, background=True)
    assert writer.finish() is None
    writer.save(1, state_of(1))
    assert writer.finish(wait=True) == tmp_path / "step_1"
    monkeypatch.setattr(sharded, "write_tensors", _slow(sharded.write_tensors))
    began = time.monotonic()
    writer.save(2, state_of(2))
    assert writer.finish() == tmp_path / "step_1"  # the newest that is sealed
    assert time.monotonic() - began < 0.4
    assert writer.finish(wait=True) == tmp_path / "step_2"


def _slow(function):
    def slow(*arguments, **options):
        time.sleep(0.4)
        return function(*arguments, **options)

    return slow


def _full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_is_an_error_and_the_last_checkpoint_stays(tmp_path, monkeypatch, background):
    writer = CheckpointWriter(tmp_path, background=background)
    writer.save(1, state_of(1))
    writer.finish(wait=True)
    monkeypatch.setattr(sharded, "write_tensors", _full)
    with pytest.raises(CheckpointError, match=r"step_2: No space left on device; free space"):
        writer.save(2, state_of(2))
        writer.finish(wait=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]
    assert load_latest(tmp_path)[1]["value"] == 1
    monkeypatch.undo()
    writer.save(2, state_of(2))  # space was made
    assert writer.finish(wait=True) == tmp_path / "step_2"


def test_a_disk_that_is_really_full(tmp_path):
    """A file system of 256 KiB, where one may be mounted."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        save_checkpoint(tmp_path / "checkpoints", 1, state_of(1))
        big = {"modules": {"w": torch.zeros(1 << 17)}}
        with pytest.raises(CheckpointError, match=r"step_2: No space left on device; free space"):
            save_checkpoint(tmp_path / "checkpoints", 2, big, background=True)
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_1"]
        assert load_latest(tmp_path / "checkpoints")[0] == 1
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_folder_that_is_removed_during_a_save_is_an_error(tmp_path, monkeypatch):
    write = sharded.write_tensors

    def removed(*arguments, **options):
        shutil.rmtree(tmp_path / "checkpoints")
        return write(*arguments, **options)

    writer = CheckpointWriter(tmp_path / "checkpoints", background=True)
    monkeypatch.setattr(sharded, "write_tensors", removed)
    writer.save(1, state_of(1))
    with pytest.raises(CheckpointError, match=r"step_1: No such file.*folder was removed"):
        writer.finish(wait=True)
    monkeypatch.undo()
    writer.save(2, state_of(2))  # between saves it is made again
    assert writer.finish(wait=True) == tmp_path / "checkpoints" / "step_2"


def test_an_error_that_is_not_the_disks_reaches_the_trainer(tmp_path):
    writer = CheckpointWriter(tmp_path, background=True)
    writer.save(1, {"w": torch.zeros(2, dtype=torch.complex128)})
    with pytest.raises(CheckpointError, match=r"cannot save /w: .*complex128"):
        writer.finish(wait=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_ends_a_save_whole_and_ctrl_c_at_once(tmp_path, monkeypatch, error):
    monkeypatch.setattr(sharded, "write_tensors", _slow(sharded.write_tensors))
    writer = CheckpointWriter(tmp_path, background=True)
    with pytest.raises(error), writer.closing(warn=print):
        writer.save(1, state_of(1))
        raise error
    assert list_checkpoints(tmp_path) == ([] if error is KeyboardInterrupt else [1])
    assert not list(tmp_path.glob(".*"))


def test_modes_are_what_the_umask_leaves(tmp_path):
    before = os.umask(0o022)
    try:
        path = save_checkpoint(tmp_path, 1, state_of(1))
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in path.iterdir()} == {"0o644"}
    assert path.stat().st_mode & 0o777 == 0o755


def _module() -> nn.Module:
    """Return a module whose rows do not divide evenly among processes; weights are tied."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 1))
    module.add_module("again", module[1])
    return module


def _sharded_state(value: str = "whole") -> dict:
    module = _module()
    mesh = init_device_mesh("cpu", (world_size(),))
    fully_shard(module, mesh=mesh)
    moments = {name: p.detach() * 2 for name, p in module.named_parameters()}
    return {
        "modules": dict(module.state_dict()),
        "optimizer": {n: {"exp_avg": m, "step": torch.tensor(3.0)} for n, m in moments.items()},
        "columns": distribute_tensor(torch.arange(24.0).reshape(4, 6), mesh, [Shard(1)]),
        "same": distribute_tensor(torch.arange(3.0), mesh, [Replicate()]),
        "plain": [torch.arange(5), value],
    }


def _save_sharded(folder: Path, background: bool = True) -> None:
    writer = CheckpointWriter(folder, background=background)
    writer.save(3, _sharded_state())
    assert writer.finish(wait=True) == folder / "step_3"  # on each process: sealed
    assert (folder / "step_3" / "checkpoint.json").is_file()


def _load_sharded(folder: Path) -> None:
    """Read into DTensors of this number of processes, and compare the parts."""
    own = _sharded_state()

    def like(place: str) -> torch.Tensor | None:
        _, kind, *names = place.split("/")
        if kind == "modules":
            return own["modules"]["/".join(names)]
        return own.get(kind) if kind in ("columns", "same") else None

    step, state = load_latest(folder, like=like)
    assert step == 3
    for name, tensor in own["modules"].items():
        found = state["modules"][name]
        assert isinstance(found, DTensor)
        assert found.placements == tensor.placements
        assert torch.equal(found.to_local(), tensor.to_local()), name
    for name in ("columns", "same"):
        assert torch.equal(state[name].to_local(), own[name].to_local())
    moments = own["optimizer"]["0.weight"]["exp_avg"].full_tensor()
    assert torch.equal(state["optimizer"]["0.weight"]["exp_avg"], moments)


def _assert_whole(state: dict) -> None:
    expected = _module().state_dict()
    assert state["modules"].keys() == expected.keys()
    assert all(torch.equal(state["modules"][name], expected[name]) for name in expected)
    assert torch.equal(state["optimizer"]["0.weight"]["exp_avg"], expected["0.weight"] * 2)
    assert torch.equal(state["optimizer"]["2.bias"]["step"], torch.tensor(3.0))
    assert torch.equal(state["columns"], torch.arange(24.0).reshape(4, 6))
    assert torch.equal(state["same"], torch.arange(3.0))
    assert torch.equal(state["plain"][0], torch.arange(5))
    assert state["plain"][1] == "whole"


@pytest.fixture(scope="module")
def saved_on_two(tmp_path_factory) -> Path:
    """Return the folder of a checkpoint of two processes, which have checked what only they can."""
    folder = tmp_path_factory.mktemp("two")
    whole = _module().state_dict()
    moments = {name: {"exp_avg": tensor * 2} for name, tensor in whole.items()}
    columns = torch.arange(24.0).reshape(4, 6)
    state = {"modules": dict(whole), "optimizer": moments, "columns": columns}
    save_checkpoint(folder / "of_one", 3, state | {"same": torch.arange(3.0)})
    run_processes(_on_two, 2, folder)
    return folder / "of_two"


def _on_two(folder: Path) -> None:
    _save_sharded(folder / "of_two")
    _load_sharded(folder / "of_one")
    _load_sharded(folder / "of_two")
    _one_damaged(folder / "damaged")
    for number in range(2):
        _slow_on_one(folder / f"slow_{number}", number)
        _full_on_one(folder / f"full_{number}", number)


def test_saved_on_two_processes_and_read_on_one(saved_on_two):
    _assert_whole(load_checkpoint(saved_on_two / "step_3"))
    only = load_checkpoint(saved_on_two / "step_3", only="/modules/0.")["modules"]
    assert [name for name, tensor in only.items() if tensor is not None] == ["0.weight", "0.bias"]


def test_each_process_writes_its_share(saved_on_two):
    names = sorted(path.name for path in (saved_on_two / "step_3").iterdir())
    shards = [f"shard_0000{i}-of-00002.safetensors" for i in (0, 1)]
    assert names == ["checkpoint.json", *shards, "state.json"]
    sizes = [(saved_on_two / "step_3" / name).stat().st_size for name in shards]
    assert max(sizes) < 1.5 * min(sizes)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_reads_a_checkpoint_without_a_process_group(saved_on_two):
    names = _hf_utils.CUSTOM_METADATA_KEY, _hf_utils.SAVED_OFFSETS_KEY
    assert names == (run.SHARDING, run.OFFSETS)
    expected = _module().state_dict()
    state = {f"/modules/{name}": torch.zeros_like(t) for name, t in expected.items()}
    del state["/modules/again.weight"]  # tied: it is stored as 1.weight
    state["/columns"] = torch.zeros(4, 6)
    load(state, storage_reader=HuggingFaceStorageReader(str(saved_on_two / "step_3")), no_dist=True)
    assert torch.equal(state.pop("/columns"), torch.arange(24.0).reshape(4, 6))
    for place, tensor in state.items():
        assert torch.equal(tensor, expected[place.removeprefix("/modules/")]), place


def test_saved_on_two_processes_and_read_on_three(saved_on_two):
    run_processes(_load_sharded, 3, saved_on_two)


def _one_damaged(folder: Path) -> None:
    """Save twice, flip a byte of the file that process 1 verifies, and read."""
    writer = CheckpointWriter(folder)
    for step in (1, 2):
        writer.save(step, _sharded_state() | {"value": step})
    if rank() == 0:
        file = folder / "step_2" / "shard_00001-of-00002.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    dist.barrier()
    warnings: list[str] = []
    step, state = load_latest(folder, warn=warnings.append)
    assert (step, state["value"]) == (1, 1)  # on both processes
    assert len(warnings) == 1
    assert ".safetensors is damaged" in warnings[0]


def _slow_on_one(folder: Path, number: int) -> None:
    """One process writes later than the other: both wait until the checkpoint is sealed."""
    writer = CheckpointWriter(folder, background=True)
    with pytest.MonkeyPatch.context() as patch:
        if rank() == number:
            patch.setattr(sharded, "write_tensors", _slow(sharded.write_tensors))
        writer.save(2, _sharded_state())
        assert writer.finish(wait=True) == folder / "step_2"
    assert (folder / "step_2" / "checkpoint.json").is_file()


def _full_on_one(folder: Path, number: int) -> None:
    """The disk of one process is full at its second save; both are told."""
    writer = CheckpointWriter(folder, background=True)
    writer.save(1, _sharded_state())
    writer.finish(wait=True)
    with pytest.MonkeyPatch.context() as patch:
        if rank() == number:
            patch.setattr(sharded, "write_tensors", _full)
        writer.save(2, _sharded_state())
        with pytest.raises(CheckpointError) as caught:
            writer.finish(wait=True)
    dist.barrier()
    assert list_checkpoints(folder) == [1]
    assert "step_2: No space left on device" in str(caught.value)  # on both
    dist.barrier()
    CheckpointWriter(folder)  # what a resumed run does first
    dist.barrier()
    assert [path.name for path in folder.iterdir()] == ["step_1"]


def test_a_killed_process_leaves_a_usable_checkpoint():
    finished = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.kill_saves", "5"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout) == {"save_kills": 5}


def test_a_file_that_vanishes_while_a_process_waits_is_no_error(tmp_path, monkeypatch):
    """Rank 0 removes the notes while the others look at the folder: once a run failed by it."""
    (tmp_path / "shard").write_bytes(b"1234")
    whole_stat, looks = Path.stat, []

    def stat(path, **options):
        looks.append(path)
        if path.name == "shard" and len(looks) > 1:
            path.unlink(missing_ok=True)
        return whole_stat(path, **options)

    assert sharded._bytes_in(tmp_path) == 4
    looks.clear()
    monkeypatch.setattr(Path, "stat", stat)
    Path.stat(tmp_path / "shard")
    assert sharded._bytes_in(tmp_path) == 0
