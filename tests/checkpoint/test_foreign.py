"""Foreign files: every wrapping and format gives the same tensors; bad ones are refused."""

import argparse
import json
import os
import tracemalloc
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.fuzz.mutators import zip_bomb
from triptych.checkpoint.foreign import (
    read_foreign,
    unwrap_state,
    write_foreign,
    write_foreign_folder,
)
from triptych.core.errors import CheckpointError


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(3, 4, generator=generator),
        "a.bias": torch.randn(3, generator=generator).half(),
        "count": torch.tensor(7),
    }


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("wrapper", [None, "model", "module", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".tar"])
def test_every_wrapping_gives_the_same_tensors(state, tmp_path, wrapper, suffix):
    payload = state if wrapper is None else {wrapper: state, "epoch": 3, "optimizer": {"lr": 0.1}}
    torch.save(payload, tmp_path / f"x{suffix}")
    assert_same(read_foreign(tmp_path / f"x{suffix}").tensors, state)


def test_the_format_before_zip_files_is_read(state, tmp_path):
    torch.save({"model": state}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert_same(read_foreign(tmp_path / "x.pth").tensors, state)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "model.module."])
def test_a_prefix_of_all_names_is_taken_off(state, prefix):
    assert_same(unwrap_state({prefix + k: v for k, v in state.items()}, "x"), state)


def test_a_prefix_of_some_names_belongs_to_them(state):
    mixed = {"module.a": state["a.bias"], "b": state["count"]}
    assert_same(unwrap_state(mixed, "x"), mixed)


def test_arguments_of_a_script_beside_the_weights_do_no_harm(state, tmp_path):
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1)}, tmp_path / "x.pth")
    assert_same(read_foreign(tmp_path / "x.pth").tensors, state)


def test_safetensors(state, tmp_path):
    save_file(state, tmp_path / "x.safetensors")
    assert_same(read_foreign(tmp_path / "x.safetensors").tensors, state)


def _folder(path, state, kind):
    """Write a folder as transformers does, with the weights whole or in two shards."""
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "bert"}')
    name = "model.safetensors" if "safetensors" in kind else "pytorch_model.bin"
    save = save_file if "safetensors" in kind else torch.save
    if "sharded" not in kind:
        save(state, path / name)
        return
    stem, suffix = name.rsplit(".", 1)
    places = {}
    for number, key in enumerate(state):
        shard = f"{stem}-0000{number + 1}-of-0000{len(state)}.{suffix}"
        save({key: state[key]}, path / shard)
        places[key] = shard
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (path / f"{name}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("kind", ["safetensors", "bin", "sharded safetensors", "sharded bin"])
def test_folders_of_transformers(state, tmp_path, kind):
    _folder(tmp_path / "hub", state, kind)
    found = read_foreign(tmp_path / "hub")
    assert_same(found.tensors, state)
    assert found.config == {"model_type": "bert"}


def test_a_missing_shard_is_named(state, tmp_path):
    _folder(tmp_path / "hub", state, "sharded safetensors")
    (tmp_path / "hub" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors is missing"):
        read_foreign(tmp_path / "hub")


def test_a_tensor_that_no_shard_holds_is_named(state, tmp_path):
    _folder(tmp_path / "hub", state, "sharded bin")
    index = tmp_path / "hub" / "pytorch_model.bin.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["b.weight"] = content["weight_map"]["a.weight"]
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"no shard holds b\.weight"):
        read_foreign(tmp_path / "hub")


def test_an_index_cannot_lead_out_of_its_folder(state, tmp_path):
    save_file(state, tmp_path / "outside.safetensors")
    _folder(tmp_path / "hub", state, "sharded safetensors")
    index = tmp_path / "hub" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": "../outside.safetensors"}}))
    with pytest.raises(CheckpointError, match="not a file beside it"):
        read_foreign(tmp_path / "hub")


class Attack:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_file_is_refused_and_never_run(state, tmp_path, new_format):
    payload = {"model": state, "callback": Attack(tmp_path / "broken_in")}
    torch.save(payload, tmp_path / "x.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match="without running code"):
        read_foreign(tmp_path / "x.pth")
    assert not (tmp_path / "broken_in").exists()


def test_a_whole_pickled_model_is_refused_with_the_way_out(tmp_path):
    torch.save(nn.Linear(2, 3), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="state dict alone"):
        read_foreign(tmp_path / "x.pt")


@pytest.mark.parametrize("share", [0.2, 0.9])
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_truncated_files_are_named(state, tmp_path, kind, share):
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=rf"{path.name} is .*(damaged|no torch file)"):
        read_foreign(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "is empty"), (b"\x89PNG and more" * 50, "no torch file"), (b"PK\x03\x04xx", "damaged")],
)
def test_other_bytes_are_named(tmp_path, content, says):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        read_foreign(tmp_path / "x.pth")


def test_a_file_without_tensors_says_what_it_holds(tmp_path):
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"no state dict \(its keys: epoch, lr\)"):
        read_foreign(tmp_path / "x.pth")
    torch.save([torch.zeros(1)], tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match="it holds a list"):
        read_foreign(tmp_path / "y.pth")


def test_absent_and_unknown_names(tmp_path):
    with pytest.raises(CheckpointError, match="there is no file or folder"):
        read_foreign(tmp_path / "x.pth")
    (tmp_path / "x.npz").write_bytes(b"1")
    with pytest.raises(CheckpointError, match="must end in"):
        read_foreign(tmp_path / "x.npz")
    with pytest.raises(CheckpointError, match=r"holds no weights.*x\.npz"):
        read_foreign(tmp_path)


@pytest.mark.parametrize(("wrapper", "keys"), [("model", ["model"]), (None, ["a", "b"])])
def test_written_files_are_bare_or_wrapped_and_whole(tmp_path, wrapper, keys):
    tied = torch.arange(4.0)
    path = tmp_path / "new" / "x.pth"
    write_foreign(path, {"a": tied, "b": tied[:2]}, wrapper=wrapper)
    assert sorted(torch.load(path, weights_only=True)) == keys
    assert_same(read_foreign(path).tensors, {"a": tied, "b": tied[:2]})
    assert [p.name for p in path.parent.iterdir()] == ["x.pth"]


def test_tied_tensors_are_written_apart_to_safetensors(tmp_path):
    tied = torch.arange(4.0)
    write_foreign(tmp_path / "x.safetensors", {"a": tied, "b": tied, "c": tied[1:]}, wrapper=None)
    found = read_foreign(tmp_path / "x.safetensors").tensors
    assert_same(found, {"a": tied, "b": tied, "c": tied[1:]})


def test_an_unknown_suffix_writes_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="must end in"):
        write_foreign(tmp_path / "x.npz", {"a": torch.zeros(1)}, wrapper=None)
    assert list(tmp_path.iterdir()) == []


def test_a_written_folder_is_read_back_and_never_replaced(state, tmp_path):
    (tmp_path / "vocab.txt").write_text("a")
    configs = {"config.json": {"model_type": "x"}, "more.json": {}}
    write_foreign_folder(tmp_path / "hub", state, configs, [tmp_path / "vocab.txt"])
    assert (tmp_path / "hub" / "vocab.txt").read_text() == "a"
    found = read_foreign(tmp_path / "hub")
    assert_same(found.tensors, state)
    assert found.config == {"model_type": "x"}
    with pytest.raises(CheckpointError, match="exists"):
        write_foreign_folder(tmp_path / "hub", state, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hub", "vocab.txt"]


def test_a_folder_that_cannot_be_finished_is_not_there(state, tmp_path):
    with pytest.raises(CheckpointError, match="cannot write"):
        write_foreign_folder(tmp_path / "hub", state, {}, [tmp_path / "absent.txt"])
    assert list(tmp_path.iterdir()) == []


class Tower(nn.Module):
    """A network with nested names, a scalar, a half tensor and a buffer."""

    def __init__(self):
        super().__init__()
        self.visual = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("turned", torch.arange(6, dtype=torch.float16).reshape(2, 3).T)

    def forward(self, x):
        return self.visual(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_archive_gives_its_tensors(tmp_path):
    torch.manual_seed(0)
    tower = Tower()
    torch.jit.save(torch.jit.trace(tower, torch.zeros(2, 3)), tmp_path / "clip.pt")
    assert_same(read_foreign(tmp_path / "clip.pt").tensors, tower.state_dict())


def _archive(path, description):
    """Write a zip that passes for a TorchScript archive."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/constants.pkl", b"")
        archive.writestr("x/data.pkl", description)


def test_a_program_named_in_an_archive_is_not_run(tmp_path):
    import pickle

    _archive(tmp_path / "x.pt", pickle.dumps(Attack(tmp_path / "broken_in")))
    with pytest.raises(CheckpointError, match="no state dict"):
        read_foreign(tmp_path / "x.pt")
    assert not (tmp_path / "broken_in").exists()


def test_damaged_archives_are_named(tmp_path):
    _archive(tmp_path / "x.pt", b"not a pickle")
    with pytest.raises(CheckpointError, match="damaged TorchScript archive"):
        read_foreign(tmp_path / "x.pt")


def test_ordered_dicts_are_state_dicts(state, tmp_path):
    torch.save(OrderedDict(state), tmp_path / "x.pth")
    assert_same(read_foreign(tmp_path / "x.pth").tensors, state)


def test_a_dict_that_holds_itself_is_told(tmp_path):
    loop = {}
    loop["model"] = {"state_dict": loop}
    torch.save(loop, tmp_path / "x.pth")
    with pytest.raises(
        CheckpointError, match=r"x\.pth holds no state dict: a dict in it holds its"
    ):
        read_foreign(tmp_path / "x.pth")


@pytest.mark.parametrize("names", [("m/data.pkl", "m/constants.pkl"), ("m/data.pkl", "m/data/0")])
def test_a_zip_bomb_is_refused_by_its_directory(tmp_path, names):
    """8 GiB of zeros in 8 MiB; nothing of it is unpacked."""
    (tmp_path / "x.pt").write_bytes(zip_bomb(*names))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"x\.pt: .*8 GiB.* once it is unpacked"):
            read_foreign(tmp_path / "x.pt")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    """Its elements are all one number, so that a few bytes claim any size."""
    torch.save({"w": torch.zeros(1).expand(10**9)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="claim 4,000,000,000 bytes, far more than the file"):
        read_foreign(tmp_path / "x.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_that_are_not_finite_are_named(tmp_path, suffix, value):
    state = {"good": torch.ones(2), "bad": torch.tensor([1.0, value])}
    path = tmp_path / f"x.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(state, path)
    with pytest.raises(CheckpointError, match=rf"x\.{suffix}: bad holds NaN or infinite"):
        read_foreign(path)


@pytest.mark.parametrize("tensor", [torch.ones(3).to_sparse(), torch.empty(3, device="meta")])
def test_tensors_that_are_no_plain_weights_are_refused(tmp_path, tensor):
    torch.save({"w": tensor}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="w is a sparse, quantized or empty tensor"):
        read_foreign(tmp_path / "x.pth")


def test_objects_that_hold_one_another_end(tmp_path):
    """Each of 60 objects holds the one before under two names: 2^60 names in all."""
    part = b"c__torch__\nPart\n)\x81"
    pair = b"(X\x01\0\0\0ah\0X\x01\0\0\0bh\0ub"
    members = {"m/data.pkl": b"\x80\x02" + part + (b"q\0" + part + b"}" + pair) * 60 + b"."}
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        for name, content in (members | {"m/constants.pkl": b"\x80\x02)."}).items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match="hold more than 200000 others"):
        read_foreign(tmp_path / "x.pt")


def test_a_pipe_is_no_weights(tmp_path):
    os.mkfifo(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="is a named pipe, not a regular file"):
        read_foreign(tmp_path / "x.pth")
