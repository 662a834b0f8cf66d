"""Adapters in peft's files: peft itself says what they mean."""

import json
from dataclasses import replace

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.serving.tiny_folder import write_tiny_folder
from triptych.checkpoint.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    merge,
    read_adapter,
    split_adapter,
    write_adapter,
)
from triptych.checkpoint.model_folder import load_model_folder, save_model_folder
from triptych.core.errors import CheckpointError
from triptych.nn.lora import LoRAConfig, LoRALinear, adapt
from triptych.serving.loading import load_model

LORA = LoRAConfig(rank=3, alpha=5.0, targets=("attention", "mlp.up"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_folder(tmp_path_factory.mktemp("tiny") / "model", "vqa")


def adapted(folder):
    """Return a model with a change that is not zero, as a run would leave it."""
    model = load_model(folder, device="cpu", train=True).model.eval()
    adapt(model, LORA)
    torch.manual_seed(7)
    for part in model.modules():
        if isinstance(part, LoRALinear):
            nn.init.normal_(part.lora_B, std=0.1)
    return model


def answers(model):
    """Return the states of an image and a text, fused."""
    torch.manual_seed(3)
    image, ids = torch.randn(2, 3, 16, 16), torch.randint(5, 20, (2, 6))
    with torch.no_grad():
        text = model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool))
        return model.fuse(model.encode_image(image), text).pooled


def split(model):
    return split_adapter(model.state_dict(), rank=3, alpha=5.0, based_on="x")


def test_peft_reads_ours(folder, tmp_path):
    ours = adapted(folder)
    base, adapter = split(ours)
    write_adapter(tmp_path, adapter, base)
    plain = load_model(folder, device="cpu", train=True).model.eval()
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path))
    layer = theirs.base_model.model.fusion.blocks[0].mlp.up
    mine = ours.fusion.blocks[0].mlp.up
    x = torch.randn(4, mine.in_features)
    torch.testing.assert_close(layer(x), mine(x))  # not merged
    torch.testing.assert_close(answers(theirs.merge_and_unload()), answers(ours))


def test_what_is_trained_in_full_goes_both_ways(folder, tmp_path):
    whole = ["decoder.embedding.word.weight", "fusion.blocks.0.mlp_norm.bias"]
    ours = adapted(folder)
    with torch.no_grad():
        for name in whole:
            ours.get_parameter(name).add_(1)
    base, adapter = split_adapter(ours.state_dict(), whole, rank=3, alpha=5.0)
    (tmp_path / "ours").mkdir()
    write_adapter(tmp_path / "ours", adapter, base)
    plain = load_model(folder, device="cpu", train=True).model
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path / "ours"))
    found = theirs.merge_and_unload().state_dict()
    wanted = merge(base, adapter, "it")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
    config = peft.LoraConfig(target_modules=["mlp.up"], modules_to_save=["decoder.embedding.word"])
    plain = load_model(folder, device="cpu", train=True).model
    start = {name: value.clone() for name, value in plain.state_dict().items()}
    theirs = peft.get_peft_model(plain, config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    back = merge(start, read_adapter(tmp_path / "theirs"), "it")
    found = theirs.merge_and_unload().state_dict()
    for name, value in back.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 8},
        {"r": 4, "lora_alpha": 8, "use_rslora": True},
        {
            "r": 4,
            "lora_alpha": 8,
            "rank_pattern": {"attention.out": 2},
            "alpha_pattern": {"attention.out": 6},
        },
    ],
)
def test_ours_reads_peft(folder, tmp_path, settings):
    plain = load_model(folder, device="cpu", train=True).model.eval()
    before = answers(plain)
    config = peft.LoraConfig(
        target_modules=["attention.out", "mlp.up", "key_value"], init_lora_weights=False, **settings
    )
    torch.manual_seed(5)
    theirs = peft.get_peft_model(plain, config)
    theirs.save_pretrained(tmp_path)
    ours = load_model(folder, device="cpu").model
    ours.load_state_dict(merge(ours.state_dict(), read_adapter(tmp_path), "it"))
    merged = theirs.merge_and_unload()
    torch.testing.assert_close(answers(ours), answers(merged))
    assert not torch.allclose(answers(ours), before, atol=1e-3)


def test_a_folder_with_an_adapter_beside_is_one_with_it_merged(folder, tmp_path):
    found, model = load_model_folder(folder), adapted(folder)
    base, adapter = split(model)
    kept = {"config": found.config, "preprocess": found.preprocess, "card": "#"}
    kept["tokenizer_json"] = found.tokenizer_json
    save_model_folder(tmp_path / "beside", state_dict=base, adapter=adapter, **kept)
    save_model_folder(tmp_path / "merged", state_dict=merge(base, adapter, "it"), **kept)
    one, other = (load_model(tmp_path / name).model.state_dict() for name in ("beside", "merged"))
    assert all(torch.equal(one[name], value) for name, value in other.items())
    torch.testing.assert_close(answers(load_model(tmp_path / "beside").model), answers(model))
    apart = load_model_folder(tmp_path / "beside", merged=False)
    assert all(torch.equal(apart.state_dict[name], value) for name, value in base.items())
    assert apart.adapter is not None and apart.adapter.rank == 3
    (tmp_path / "beside" / ADAPTER_CONFIG).unlink()
    (tmp_path / "beside" / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is missing"):
        load_model(tmp_path / "beside")


@pytest.fixture
def written(folder, tmp_path):
    base, adapter = split(adapted(folder))
    write_adapter(tmp_path, adapter, base)
    return tmp_path


def change_config(folder, **changes):
    path = folder / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 8}, "says rank 8, and the weights beside it have 3"),
        ({"r": "x"}, "adapter_config.json"),
        ({"peft_type": "IA3"}, "only LORA"),
        ({"use_dora": True}, "use_dora = True cannot be read"),
        ({"bias": "all"}, "bias = 'all' cannot be read"),
        ({"init_lora_weights": "pissa"}, "changes the model's own weights"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a finite number"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "only names of layers"),
    ],
)
def test_what_means_more_or_does_not_fit_is_refused(written, changes, message):
    change_config(written, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_adapter(written)


@pytest.mark.parametrize("size", [0, 7, 200])
def test_a_damaged_file_is_named(written, size):
    path = written / ADAPTER_WEIGHTS
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=ADAPTER_WEIGHTS):
        read_adapter(written)


def test_half_a_pair_and_other_layers_are_refused(written):
    path = written / ADAPTER_WEIGHTS
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({n: t for n, t in tensors.items() if n != name}, path)
    with pytest.raises(CheckpointError, match="one of the two matrices"):
        read_adapter(written)
    save_file(tensors | {"base_model.model.x.lora_embedding_A": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="no part of a change"):
        read_adapter(written)


def test_an_adapter_of_another_model_is_told(folder, written, tmp_path):
    adapter = read_adapter(written)
    state = load_model_folder(folder).state_dict
    with pytest.raises(CheckpointError, match="which this model lacks"):
        merge({n: v for n, v in state.items() if "fusion" not in n}, adapter, "it")
    narrow = {n: v[:, :-1] if v.ndim == 2 else v for n, v in state.items()}
    with pytest.raises(CheckpointError, match="adapter of another model: its change of"):
        merge(narrow, adapter, "it")
    other = {n: v + 1 if v.is_floating_point() else v for n, v in state.items()}
    with pytest.raises(CheckpointError, match="the same shapes with other weights"):
        merge(other, adapter, "it")
    merge(other, replace(adapter, base=None), "it")  # a file of peft does not say
    name = next(iter(adapter.factors))
    tied = state | {"copy": state[f"{name}.weight"]}
    with pytest.raises(CheckpointError, match="tied"):
        merge(tied, replace(adapter, base=None), "it")
