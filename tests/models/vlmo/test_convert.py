"""Released checkpoints in and out; key lists and small weights come from the released code."""

import dataclasses
import gzip
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from triptych.core.errors import CapabilityError, CheckpointError
from triptych.models.families import model_config, recognised_families
from triptych.models.vlmo.config import VLMoConfig
from triptych.models.vlmo.convert import (
    TABLE,
    TEXT_POSITIONS,
    config_for,
    export_state_dict,
    import_classifier,
    import_state_dict,
    key_table,
    optional_names,
    released_head_names,
    resize_model_state,
    trained_for,
)
from triptych.models.vlmo.model import VLMo
from triptych.models.vlmo.positions import joint_index, num_image_rows, resize_relative_table
from triptych.nn.heads import ClassificationHead

DATA = Path(__file__).parents[2] / "data"
FILES = {
    "vlmo_base_pretrain_224": ("vlmo_base_patch16", "pretraining"),
    "vlmo_base_plus_pretrain_224": ("vlmo_base_plus_patch16", "pretraining"),
    "vlmo_large_pretrain_224": ("vlmo_large_patch16", "pretraining"),
    "vlmo_base_textmlm_224": ("vlmo_base_patch16", "language"),
    "vlmo_base_irtr_384": ("vlmo_base_patch16", "retrieval"),
    "vlmo_base_vqa_480": ("vlmo_base_patch16", "vqa"),
    "vlmo_base_nlvr2_384": ("vlmo_base_patch16", "nlvr2"),
}


def released(name):
    """Return tensors without data in the shapes of a released file."""
    shapes = json.loads(gzip.decompress((DATA / "keys" / f"{name}.json.gz").read_bytes()))
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def golden(name):
    tensors = load_file(DATA / "golden" / f"{name}.safetensors")
    prefix = "state_dict/"
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def golden_config(state):
    absolute = "transformer.pos_embed" in state
    config = VLMoConfig(
        vocab_size=1000,
        embed_dim=64,
        depth=4,
        num_heads=4,
        fused_from=3,
        proj_dim=64,
        positions="absolute" if absolute else "relative",
        layer_scale=None if absolute else 0.1,
    )
    return config_for(state, config)


@pytest.mark.parametrize("name", FILES)
def test_released_files_fill_the_model_but_for_heads_they_lack(name):
    variant, task = FILES[name]
    foreign = released(name)
    assert trained_for(foreign) == task
    assert recognised_families(foreign) == ["vlmo"]
    config = config_for(foreign, model_config(variant), trained_for=task)
    assert config.image_size == int(name[-3:])
    assert config.fused_from == FUSED_FROM[variant]
    with torch.device("meta"):
        model = VLMo(config)
    report = import_state_dict(foreign, model)
    report.require(name, optional=optional_names(task))
    assert report.unexpected == []
    assert report.reinitialised == {}
    assert report.is_complete == (task == "pretraining")
    assert len(report.loaded) + len(report.missing) == len(model.state_dict())


FUSED_FROM = {"vlmo_base_patch16": 10, "vlmo_base_plus_patch16": 21, "vlmo_large_patch16": 21}


@pytest.mark.parametrize("name", ["vlmo_relative", "vlmo_absolute"])
def test_import_then_export_gives_the_file_back_bit_by_bit(name):
    state = golden(name)
    model = VLMo(golden_config(state))
    report = import_state_dict(state, model)
    exported = export_state_dict(
        model,
        temperature=report.temperature,
        fused_temperature=math.exp(-float(state["logit_vl_scale"])),
    )
    for key, tensor in state.items():
        assert exported[key].dtype == tensor.dtype
        assert exported[key].shape == tensor.shape
        if "absolute" in name or key != TEXT_POSITIONS:  # the module owns them and never reads them
            assert torch.equal(exported[key], tensor), key
    again = VLMo(golden_config(exported))
    assert import_state_dict(exported, again).is_complete
    assert all(torch.equal(t, again.state_dict()[k]) for k, t in model.state_dict().items())


LATER = ("vqa_classifier.", "nlvr2_classifier.", "logit_")
"""What stands beside the model: a folder's classifier and temperatures."""


@pytest.mark.parametrize("name", [name for name in FILES if "textmlm" not in name])
def test_an_export_has_all_that_the_released_module_owns_in_its_shape(name):
    """So `load_state_dict` takes it: no mismatch, nothing missing, index buffers as extra names."""
    variant, task = FILES[name]
    owned = released(name)
    with torch.device("meta"):
        model = VLMo(config_for(owned, model_config(variant), trained_for=task))
    exported = export_state_dict(model)
    for key in owned.keys() - {k for k in owned if k.startswith(LATER)}:
        assert exported[key].shape == owned[key].shape, key
    indices = {k for k in exported if k.endswith("position_index")}
    assert len(indices) == (0 if "plus" in name else 3)
    # the loader of the released code pops these three where it resizes the table


def test_an_exported_language_model_fits_the_stage_after_it():
    variant, task = FILES["vlmo_base_textmlm_224"]
    stored, owned = released("vlmo_base_textmlm_224"), released("vlmo_base_pretrain_224")
    with torch.device("meta"):
        model = VLMo(config_for(stored, model_config(variant), trained_for=task))
    exported = export_state_dict(model)
    shared = {k for k in owned if not k.startswith(LATER)}
    assert all(exported[key].shape == owned[key].shape for key in shared)


@pytest.mark.parametrize("wrapper", ["state_dict", "module", "model"])
def test_wrapped_files_and_stray_buffers(wrapper):
    state = golden("vlmo_relative")
    config = golden_config(state)
    stray = {
        "relative_position_index": torch.zeros(17, 17, dtype=torch.int64),
        "text_relative_position_index": torch.zeros(196, 196, dtype=torch.int64),
        "text_imag_relative_position_index": torch.zeros(213, 213, dtype=torch.int64),
        "text_embeddings.position_ids": torch.arange(196)[None],
        TEXT_POSITIONS: torch.zeros(196, 64),
    }
    wrapped = {f"module.{key}": tensor for key, tensor in (state | stray).items()}
    model = VLMo(config)
    report = import_state_dict({wrapper: wrapped, "epoch": 3}, model)
    assert report.is_complete
    assert set(stray) <= set(report.dropped)
    assert torch.equal(model.class_embedding, state["transformer.cls_token"].flatten())


def test_longer_text_positions_of_a_file_are_cut():
    state = golden("vlmo_absolute")
    rows = torch.randn(196, 64)
    config = dataclasses.replace(golden_config(state), max_text_tokens=40)
    model = VLMo(config)
    report = import_state_dict(state | {TEXT_POSITIONS: rows}, model)
    assert report.resized == ["text_embedding.position.weight"]
    assert torch.equal(model.text_embedding.position.weight, rows[:40])
    assert golden_config(state | {TEXT_POSITIONS: rows}).max_text_tokens == 196


def test_exported_buffers_are_those_that_the_released_code_registers():
    exported = export_state_dict(VLMo(golden_config(golden("vlmo_relative"))))
    assert exported["relative_position_index"].shape == (17, 17)
    assert exported["text_relative_position_index"].shape == (196, 196)
    joint = exported["text_imag_relative_position_index"]
    ours = joint_index(196, 1, 4, 196, torch.device("cpu"))  # the image stands first
    assert torch.equal(joint[:196, :196], ours[17:, 17:])
    assert torch.equal(joint[196:, 196:], ours[:17, :17])
    assert torch.equal(joint[:196, 196:], ours[17:, :17])
    assert torch.equal(joint[196:, :196], ours[:17, 17:])
    assert exported["transformer.cls_token"].shape == (1, 1, 64)


def test_a_file_of_another_size_is_resized():
    state = golden("vlmo_relative")
    config = config_for(state, golden_config(state), image_size=96)
    model = VLMo(config)
    report = import_state_dict(state, model)
    assert report.is_complete
    assert report.resized == ["trunk.relative_positions.table"]
    rows = num_image_rows(6) - 3
    expected = resize_relative_table(state[TABLE], 4, 6)
    torch.testing.assert_close(model.trunk.relative_positions.table.detach(), expected)
    assert torch.equal(expected[rows:], state[TABLE][49:])


@pytest.mark.parametrize("name", ["vlmo_relative", "vlmo_absolute"])
def test_our_own_states_are_resized_alike(name):
    state = golden(name)
    model = VLMo(golden_config(state))
    import_state_dict(state, model)
    resized, config = resize_model_state(dict(model.state_dict()), model.config, 96)
    other = VLMo(config)
    import_state_dict(state, other)
    other_state = other.state_dict()
    assert all(torch.equal(tensor, other_state[key]) for key, tensor in resized.items())


def test_shorter_texts_than_the_file_has_rows_for():
    state = golden("vlmo_relative")
    config = dataclasses.replace(golden_config(state), max_text_tokens=40)
    short, long = VLMo(config), VLMo(golden_config(state))
    assert import_state_dict(state, short).is_complete
    import_state_dict(state, long)
    ids, mask = torch.randint(5, 900, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    with torch.no_grad():
        found, expected = (m.eval().encode_text(ids, mask).tokens for m in (short, long))
    torch.testing.assert_close(found, expected)


def test_the_second_image_of_a_pair_begins_with_the_type_of_the_first():
    state = golden("vlmo_relative")
    model = VLMo(dataclasses.replace(golden_config(state), num_image_types=2))
    assert import_state_dict(state, model).resized == ["modality_embedding.weight"]
    types = state["token_type_embeddings.weight"]
    assert torch.equal(model.modality_embedding.weight, types[[0, 1, 1]])


def test_the_language_stage_leaves_the_heads_and_experts_of_pairs_fresh():
    state = golden("vlmo_relative")
    language = {k: t for k, t in state.items() if "vl" not in k and "itm" not in k}
    language = {k: t for k, t in language.items() if "itc" not in k and k != "logit_scale"}
    model = VLMo(golden_config(state))
    report = import_state_dict(language, model)
    assert {name for name in report.missing if ".experts." not in name} == {
        "image_projection.weight",
        "text_projection.weight",
        "fused_image_projection.weight",
        "fused_text_projection.weight",
        "itm_head.weight",
        "itm_head.bias",
    }
    assert {n for n in report.missing if ".experts." in n} == {
        n for n in model.state_dict() if ".experts.fused." in n
    }


def test_a_classifier_fits_our_head():
    foreign = {
        "vqa_classifier.0.weight": torch.randn(8, 4),
        "vqa_classifier.0.bias": torch.randn(8),
        "vqa_classifier.1.weight": torch.randn(8),
        "vqa_classifier.1.bias": torch.randn(8),
        "vqa_classifier.3.weight": torch.randn(5, 8),
        "vqa_classifier.3.bias": torch.randn(5),
    }
    head = ClassificationHead(4, 5, hidden_dim=8, norm=True)
    head.load_state_dict(import_classifier(foreign))
    x = torch.randn(3, 4)
    hidden = x @ foreign["vqa_classifier.0.weight"].T + foreign["vqa_classifier.0.bias"]
    normed = torch.nn.functional.layer_norm(
        hidden, (8,), foreign["vqa_classifier.1.weight"], foreign["vqa_classifier.1.bias"]
    )
    expected = torch.nn.functional.gelu(normed) @ foreign["vqa_classifier.3.weight"].T
    torch.testing.assert_close(head(x), expected + foreign["vqa_classifier.3.bias"])
    names = released_head_names(head.state_dict(), "answer_classification")
    back = {names[name]: tensor for name, tensor in head.state_dict().items()}
    assert back.keys() == foreign.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in foreign.items())
    assert released_head_names(head.state_dict(), "image_text_classification") is None
    linear = ClassificationHead(4, 5)
    assert released_head_names(linear.state_dict(), "answer_classification") is None
    assert import_classifier(golden("vlmo_relative")) is None


def test_what_cannot_be_expressed_is_refused():
    base = model_config("vlmo_base_patch16")
    with pytest.raises(CapabilityError, match="shared"):
        key_table(dataclasses.replace(base, experts="shared"))
    with pytest.raises(CapabilityError, match="stem"):
        key_table(dataclasses.replace(base, stem_widths=(4, 8)))
    with pytest.raises(CheckpointError, match="no state dict"):
        import_state_dict({"epoch": 3}, VLMo(golden_config(golden("vlmo_relative"))))
