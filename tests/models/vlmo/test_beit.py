"""BEiT's two layouts against transformers' BeitModel with random weights."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from transformers import BeitConfig, BeitModel

from triptych.models.vlmo.config import VLMoConfig
from triptych.models.vlmo.convert import (
    config_for,
    import_state_dict,
    optional_names,
    trained_for,
)
from triptych.models.vlmo.model import VLMo
from triptych.models.vlmo.positions import resize_relative_table

KEYS = Path(__file__).parents[2] / "data" / "keys" / "beit_tiny.json.gz"
DEPTH = 4


def config(**changes):
    sizes = {"vocab_size": 50, "embed_dim": 64, "depth": DEPTH, "num_heads": 4, "fused_from": 3}
    sizes |= {"image_size": 64, "max_text_tokens": 20, "proj_dim": 16}
    return VLMoConfig(**(sizes | changes))


def beit(*, pretrained):
    """Return a BeitModel with random weights: self-supervised, or fine-tuned."""
    torch.manual_seed(0)
    model = BeitModel(
        BeitConfig(
            hidden_size=64,
            num_hidden_layers=DEPTH,
            num_attention_heads=4,
            intermediate_size=256,
            image_size=64,
            patch_size=16,
            layer_norm_eps=1e-6,  # BEiT's own
            use_relative_position_bias=not pretrained,
            use_shared_relative_position_bias=pretrained,
            use_mean_pooling=not pretrained,
            use_mask_token=pretrained,
            layer_scale_init_value=0.1,
        )
    ).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def own_layout(state, keys):
    """Give transformers' tensors the names and shapes of BEiT's own code."""
    found = {key: own_tensor(state, key, shape) for key, shape in keys.items()}
    assert {key: list(tensor.shape) for key, tensor in found.items()} == keys
    return found


def own_tensor(state, key, shape):
    parts = key.split(".")
    if key in ("cls_token", "mask_token"):
        return state[f"embeddings.{key}"]
    if parts[0] == "patch_embed":
        return state[f"embeddings.patch_embeddings.projection.{parts[-1]}"]
    if key == "rel_pos_bias.relative_position_bias_table":
        return state["shared_position_bias.relative_position_bias_table"]
    if parts[0] == "norm":
        return state[f"layernorm.{parts[-1]}"]
    if parts[0] != "blocks" or parts[-1] == "relative_position_index":
        return torch.zeros(shape)  # heads and index buffers
    block, rest = f"layers.{parts[1]}", ".".join(parts[2:])
    if rest == "attn.qkv.weight":
        return torch.cat([state[f"{block}.attention.{p}_proj.weight"] for p in "qkv"])
    return state[f"{block}.{THEIRS.get(rest) or THEIRS[rest.rsplit('.', 1)[0]] + '.' + parts[-1]}"]


THEIRS = {
    "gamma_1": "lambda_1",
    "gamma_2": "lambda_2",
    "attn.q_bias": "attention.q_proj.bias",
    "attn.v_bias": "attention.v_proj.bias",
    "attn.relative_position_bias_table": "relative_position_bias.relative_position_bias_table",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


@pytest.mark.parametrize("layout", ["own", "transformers"])
@pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
@torch.no_grad()
def test_image_states_equal_those_of_transformers(kind, layout):
    theirs = beit(pretrained=kind == "pretrained")
    state = theirs.state_dict()
    if layout == "own":
        state = own_layout(state, json.loads(gzip.decompress(KEYS.read_bytes()))[kind])
    ours = VLMo(config_for(state, config())).eval()
    report = import_state_dict({"model": state}, ours)
    report.require(kind, optional=optional_names(trained_for(state)))
    assert ("trunk.norm.weight" in report.missing) == (kind == "finetuned")
    assert report.reinitialised == {}

    image = torch.randn(2, 3, 64, 64)
    expected = theirs(image).last_hidden_state
    if kind == "finetuned":  # it has no last norm; ours is fresh
        expected = torch.nn.functional.layer_norm(expected, (64,), eps=1e-6)
    torch.testing.assert_close(ours.encode_image(image).tokens, expected, atol=1e-5, rtol=1e-5)

    if kind == "pretrained":
        hidden = torch.rand(2, 16) < 0.4
        expected = theirs(image, bool_masked_pos=hidden).last_hidden_state
        found = ours.encode_image(image, hidden_patches=hidden).tokens
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_tables_of_another_grid_are_resized_and_text_rows_stay_zero():
    state = beit(pretrained=False).state_dict()
    model = VLMo(config_for(state, config(), image_size=96))
    assert model.config.image_size == 96
    import_state_dict(state, model)
    table = model.trunk.relative_positions.table.detach()
    for layer in range(DEPTH):
        theirs = state[f"layers.{layer}.relative_position_bias.relative_position_bias_table"]
        own = table[:124, 4 * layer : 4 * layer + 4]
        torch.testing.assert_close(own, resize_relative_table(theirs, 4, 6))
    assert int(table[124:].count_nonzero()) == 0


def test_a_shared_table_counts_for_every_block():
    state = beit(pretrained=True).state_dict()
    model = VLMo(config())
    import_state_dict(state, model)
    table = model.trunk.relative_positions.table.detach()[:52].unflatten(1, (DEPTH, 4))
    shared = state["shared_position_bias.relative_position_bias_table"]
    assert torch.equal(table, shared[:, None].expand(-1, DEPTH, -1))


def test_parts_for_text_keep_their_values():
    torch.manual_seed(1)
    model = VLMo(config())
    before = {k: t.clone() for k, t in model.state_dict().items()}
    report = import_state_dict(beit(pretrained=True).state_dict(), model)
    after = model.state_dict()
    assert report.unexpected == []
    assert all(torch.equal(after[k], before[k]) for k in report.missing if "modality" not in k)
    assert any(".experts.text." in k for k in report.missing)
    assert int(after["modality_embedding.weight"][1].count_nonzero()) == 0


def test_names_of_older_transformers_are_known():
    state = beit(pretrained=False).state_dict()
    older = {}
    for key, tensor in state.items():
        key = key.replace("layers.", "beit.encoder.layer.")
        for new, old in (
            (".relative_position_bias.", ".attention.attention.relative_position_bias."),
            (".attention.q_proj", ".attention.attention.query"),
            (".attention.k_proj", ".attention.attention.key"),
            (".attention.v_proj", ".attention.attention.value"),
            (".attention.o_proj", ".attention.output.dense"),
            (".mlp.fc1", ".intermediate.dense"),
            (".mlp.fc2", ".output.dense"),
        ):
            key = key.replace(new, old)
        older[key if key.startswith("beit.") else f"beit.{key}"] = tensor
    models = [VLMo(config()) for _ in range(2)]
    reports = [import_state_dict(s, m) for s, m in zip((state, older), models, strict=True)]
    assert sorted(reports[0].loaded) == sorted(reports[1].loaded)
    for name in reports[0].loaded:
        assert torch.equal(models[0].state_dict()[name], models[1].state_dict()[name])
