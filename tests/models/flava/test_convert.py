"""transformers' checkpoints in and out; the full list of names comes from its constructor."""

import dataclasses
import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tasks.pretraining.flava_batches import small_config
from triptych.core.errors import CapabilityError, CheckpointError, ConfigError
from triptych.models.dvae.config import DVAEConfig
from triptych.models.dvae.convert import export_encoder
from triptych.models.dvae.model import DVAE
from triptych.models.families import recognised_families
from triptych.models.flava import convert
from triptych.models.flava.family import flava_full, flava_small
from triptych.models.flava.model import FLAVA

_PARTS = ("image_config", "text_config", "multimodal_config")
DATA = Path(__file__).parents[2] / "data"


def _released():
    """Return tensors without data in the names and shapes of FlavaForPreTraining."""
    shapes = json.loads(gzip.decompress((DATA / "keys" / "flava_hf_default.json.gz").read_bytes()))
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def _meta_model(config):
    with torch.device("meta"):
        return FLAVA(config)


@pytest.fixture(scope="module")
def golden():
    """The weights of a small model of transformers, and ours built for them."""
    prefix = "weights/"
    tensors = load_file(DATA / "golden" / "flava.safetensors")
    state = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    folder = json.loads((DATA / "golden" / "flava.json").read_text())["config"]
    config = convert.config_for(state, convert.config_from_folder(folder, flava_full()))
    return state, config


def _load(state, config):
    model = FLAVA(config)
    return model, convert.import_state_dict(state, model)


def test_all_618_tensors_have_a_place():
    released = _released()
    assert len(released) == 618
    assert recognised_families(released) == ["flava"]
    config = convert.config_for(released, flava_full())
    assert config == dataclasses.replace(
        flava_full(), codebook=dataclasses.replace(flava_full().codebook, has_decoder=False)
    )
    model = _meta_model(config)
    report = convert.import_state_dict(released, model)
    assert report.is_complete
    assert set(report.loaded) == set(model.state_dict())
    assert set(report.dropped) == {f"{head}.bias" for head in convert.HEADS}
    exported = convert.export_state_dict(model)
    assert {k: t.shape for k, t in exported.items()} == {k: t.shape for k, t in released.items()}


def test_a_released_file_goes_out_as_it_came_in(golden):
    state, config = golden
    model, report = _load(state, config)
    assert report.is_complete
    exported = convert.export_state_dict(model)
    for head in convert.HEADS:  # the golden file holds one of the two names
        state = state | {f"{head}.bias": exported[f"{head}.bias"]}
    assert set(exported) == set(state)
    for name, tensor in state.items():
        assert exported[name].shape == tensor.shape, name
        assert torch.equal(exported[name], tensor), name


def test_a_head_bias_is_found_under_either_name(golden):
    state, config = golden
    expected, _ = _load(state, config)
    for stored in (".bias", ".decoder.bias"):
        renamed = {
            k: t
            for k, t in state.items()
            if not any(k == h + s for h in convert.HEADS for s in (".bias", ".decoder.bias"))
        } | {h + stored: state[h + ".decoder.bias"] for h in convert.HEADS}
        model, report = _load(renamed, config)
        assert report.is_complete
        assert torch.equal(model.mim_head.bias, expected.mim_head.bias)


def test_a_bare_flava_model_lacks_heads_and_codebook(golden):
    state, _ = golden
    bare = {k.removeprefix("flava."): t for k, t in state.items() if k.startswith("flava.")}
    folder = {part: {"hidden_size": 64, "num_attention_heads": 4} for part in _PARTS}
    config = convert.config_for(bare, convert.config_from_folder(folder, flava_full()))
    assert config.codebook is None
    model = FLAVA(config)
    report = convert.import_state_dict(bare, model)
    assert report.unexpected == []
    assert {name.split(".")[0] for name in report.missing} == {*convert.HEADS, "itm_head"}
    report.require("x", optional=convert.CONVERTER.optional("pretraining"))


def test_what_has_no_place_is_explained(golden):
    state, config = golden
    legacy = state | {
        "flava.text_model.embeddings.position_ids": torch.arange(64)[None],
        "optimizer.step": torch.tensor(3),
    }
    lean = dataclasses.replace(config, codebook=None, released_poolers=False)
    model, report = _load(legacy, lean)
    reasons = {report.dropped[name] for name in report.dropped}
    assert "constant" in reasons
    assert "pooler, which no loss trains" in reasons
    assert "image codebook, which the model is built without" in reasons
    assert report.unexpected == ["optimizer.step"]
    assert report.missing == []
    assert "codebook" not in dict(model.named_children()) or model.codebook is None


def test_another_file_is_refused():
    with pytest.raises(CheckpointError, match="no FLAVA model"):
        convert.normalise_names({"bert.embeddings.word_embeddings.weight": torch.zeros(2, 2)})


def test_sizes_of_a_folder_are_read_and_unknown_settings_refused():
    folder = {
        "image_config": {"hidden_size": 64, "num_attention_heads": 4},
        "text_config": {"hidden_size": 64, "num_attention_heads": 2},
        "multimodal_config": {},
    }
    config = convert.config_from_folder(folder, flava_full())
    assert (config.vision.num_heads, config.text.num_heads, config.fusion.num_heads) == (4, 2, 12)
    with pytest.raises(CheckpointError, match=r"text_config.hidden_act = 'relu'"):
        convert.config_from_folder({"text_config": {"hidden_act": "relu"}}, flava_full())


def test_widths_that_differ_cannot_become_a_transformers_folder():
    with pytest.raises(CapabilityError, match="16, 24 and 32 differ"):
        convert.folder_config(FLAVA(small_config()))
    vision = dataclasses.replace(flava_small().vision, stem_widths=())
    plain = convert.folder_config(_meta_model(dataclasses.replace(flava_small(), vision=vision)))
    assert plain["text_config"]["intermediate_size"] == 4 * 384
    assert plain["image_codebook_config"]["vocab_size"] == plain["image_config"]["vocab_size"]


def test_a_stem_has_no_released_layout():
    with pytest.raises(CapabilityError, match=r"stem_widths = \(32, 64, 128\)"):
        convert.export_state_dict(_meta_model(flava_small()))


@pytest.mark.parametrize("layout", ["openai", "transformers"])
def test_a_codebook_of_either_layout(layout):
    torch.manual_seed(0)
    sizes = DVAEConfig(image_size=24, num_codes=11, hidden_dim=4, blocks_per_group=1)
    tokenizer = DVAE(sizes)
    model = FLAVA(small_config(codebook=sizes))
    image = torch.rand(2, 3, 24, 24)
    report = convert.import_codebook(export_encoder(tokenizer, layout), model)
    assert report.unexpected == []
    assert torch.equal(model.image_codes(image), tokenizer.codes(image))
    state = model.codebook.state_dict()
    assert all(torch.equal(t, tokenizer.encoder.state_dict()[k]) for k, t in state.items())


def test_a_codebook_of_other_sizes_or_without_a_place_is_refused():
    sizes = DVAEConfig(image_size=24, num_codes=11, hidden_dim=8, blocks_per_group=1)
    weights = export_encoder(DVAE(sizes))
    with pytest.raises(CapabilityError, match="without a codebook"):
        convert.import_codebook(weights, FLAVA(small_config()))
    other = dataclasses.replace(sizes, hidden_dim=4)
    with pytest.raises(ConfigError, match="hidden_dim = 8: must be the model's 4"):
        convert.import_codebook(weights, FLAVA(small_config(codebook=other)))
