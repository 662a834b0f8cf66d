"""Released checkpoints in and out; the key lists come from the released constructors."""

import dataclasses
import gzip
import json
from pathlib import Path

import pytest
import torch

from triptych.core.errors import CapabilityError, CheckpointError
from triptych.models.families import model_config
from triptych.models.mplug.config import MPLUGConfig
from triptych.models.mplug.convert import (
    MLM_MATRIX,
    config_for,
    export_state_dict,
    import_state_dict,
    key_table,
    normalise_names,
    optional_names,
    released_stride,
    trained_for,
)
from triptych.models.mplug.model import MPLUG
from triptych.nn.encoder import TextConfig
from triptych.nn.positions import resize_position_table
from triptych.nn.vision import VisionConfig

KEYS = Path(__file__).parents[2] / "data" / "keys"
HEADS = {"image_projection", "text_projection", "itm_head", "mlm_head"}
VARIANTS = {"base": "mplug_base_patch16_256", "large": "mplug_large_patch14_224"}


def _released(name):
    """Return tensors without data in the shapes of a released file."""
    shapes = json.loads(gzip.decompress((KEYS / f"{name}.json.gz").read_bytes()))
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def _meta_model(config):
    with torch.device("meta"):
        return MPLUG(config)


def _post_norm_config():
    return MPLUGConfig(
        vision=VisionConfig(image_size=32, patch_size=16, embed_dim=128, depth=2, num_heads=2),
        text=TextConfig(vocab_size=40, embed_dim=128, num_heads=4, max_positions=64),
        text_depth=2,
        fusion_depth=3,
        connected_layers=(1,),
        decoder_depth=2,
        proj_dim=32,
    )


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    config = _post_norm_config()
    return MPLUG(dataclasses.replace(config, tie_mlm_head=False)).eval()


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize(
    ("kind", "task", "lacks"),
    [
        ("pretrain", "pretraining", set()),
        ("caption", "captioning", HEADS),
        ("vqa", "vqa", HEADS),
        ("retrieval", "retrieval", {"mlm_head", "decoder"}),
    ],
)
def test_every_kind_of_released_file_is_explained_at_full_size(kind, task, lacks, size):
    released = _released(f"mplug_{kind}_{size}")
    if kind == "pretrain":  # the key list is of a derived model without queues
        shapes = {"image_queue": (256, 65536), "text_queue": (256, 65536), "queue_ptr": (1,)}
        released |= {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert trained_for(released) == task
    config = config_for(released, model_config(VARIANTS[size]), trained_for=task)
    model = _meta_model(config)
    report = import_state_dict(released, model)
    report.require("x", optional=optional_names(task))
    assert report.resized == []
    assert {name.split(".")[0] for name in report.missing} == lacks
    assert set(report.loaded) | set(report.missing) == set(model.state_dict())
    foreign = set(normalise_names(released))
    used = {name for ours in report.loaded for name in key_table(config)[ours]}
    assert set(report.dropped) == foreign - used
    assert (config.decoder_memory == "image") == (kind == "caption")
    reasons = set(report.dropped.values())
    assert {"fusion layer that never runs", "CLIP's text tower, never run"} <= reasons
    assert ("cross-attention of a connected layer, never run" in reasons) == (size == "base")


@pytest.mark.parametrize("size", ["base", "large"])
def test_export_has_the_names_and_shapes_of_the_released_file(size):
    released = normalise_names(_released(f"mplug_pretrain_{size}"))
    model = _meta_model(config_for(released, model_config(VARIANTS[size])))
    exported = export_state_dict(model)
    assert {k: v.shape for k, v in exported.items()} == {k: released[k].shape for k in exported}
    report = import_state_dict(released, model)
    never_run = set(report.dropped) - set(exported)
    assert set(exported) == set(released) - never_run
    reasons = {report.dropped[name] for name in never_run}
    assert not any("second name" in reason or "MLM" in reason for reason in reasons)


def test_a_kind_of_file_that_lacks_too_much_is_refused():
    released = _released("mplug_vqa_base")
    model = _meta_model(model_config(VARIANTS["base"]))
    report = import_state_dict(released, model)
    with pytest.raises(CheckpointError, match=r"11 tensors are not in the file \(such as image_pr"):
        report.require("x", optional=optional_names("pretraining"))


def test_live_parameters_of_the_base_model_match_the_published_count():
    # 86.2 + 66.4 + 56.7 + 137.9 M for image, text, fusion and decoder, counted in released files.
    model = _meta_model(model_config(VARIANTS["base"]))
    parts = (model.visual_encoder, model.text_encoder, model.fusion, model.decoder)
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in parts]
    millions[0] += 768 * 512 / 1e6  # CLIP's joint projection: stored, never run
    millions[2] += (4 * (768 * 768 + 768) + 2 * 768) / 1e6  # a connected layer's cross-attention
    assert millions == pytest.approx([86.2, 66.4, 56.7, 137.9], abs=0.051)


@pytest.mark.parametrize("wrap", ["bare", "model", "module", "prefixed"])
def test_export_and_import_give_back_every_bit(tiny, wrap):
    exported = export_state_dict(tiny)
    if wrap == "prefixed":
        exported = {f"model.{name}": tensor for name, tensor in exported.items()}
    checkpoint = exported if wrap in ("bare", "prefixed") else {wrap: exported, "epoch": 3}
    other = MPLUG(tiny.config)
    report = import_state_dict(checkpoint, other)
    assert report.is_complete
    mine, theirs = tiny.state_dict(), other.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_tied_model_keeps_its_head_through_export_and_import():
    torch.manual_seed(0)
    config = _post_norm_config()
    model, other = MPLUG(config), MPLUG(config)
    assert import_state_dict(export_state_dict(model), other).is_complete
    assert torch.equal(model.mlm_head.dense.weight, other.mlm_head.dense.weight)


def test_head_with_its_own_matrix_is_not_half_loaded_into_a_tied_model(tiny):
    tied = MPLUG(dataclasses.replace(tiny.config, tie_mlm_head=True))
    before = tied.mlm_head.dense.weight.clone()
    report = import_state_dict(export_state_dict(tiny), tied)
    assert torch.equal(tied.mlm_head.dense.weight, before)
    assert all(name.startswith("mlm_head.") for name in report.missing)
    assert "tie_mlm_head=False" in report.dropped[MLM_MATRIX]


def test_queries_keys_and_values_are_packed_in_order(tiny):
    exported = export_state_dict(tiny)
    own = "text_encoder.encoder.layer.0.attention.self"
    packed = torch.cat([exported[f"{own}.{part}.weight"] for part in ("query", "key", "value")])
    assert torch.equal(packed, tiny.text_encoder.blocks[0].attention.qkv.weight)
    # fusion layer 0 of 3 is layer 2 of the 5 that text encoder and fusion have; it is asymmetric
    cross = "fusion_encoder.encoder.layer.2.crossattention.self"
    packed = torch.cat([exported[f"{cross}.{part}.bias"] for part in ("key", "value")])
    assert torch.equal(packed, tiny.fusion.blocks[0].cross_attention.key_value.bias)


def test_loaders_renaming_rule():
    names = (
        "text_encoder.bert.encoder.x",
        "fusion_encoder.fusion.encoder.x",
        "fusion_encoder.bert.embeddings.x",
        "text_decoder.bert.encoder.x",
        "module.vision_proj.bias",
        "fusion_encoder_m.bert.encoder.x",
        "model.module.text_decoder_m.bert.cls.x",
    )
    assert list(normalise_names({name: torch.zeros(1) for name in names})) == [
        "text_encoder.encoder.x",
        "fusion_encoder.encoder.x",
        "fusion_encoder.embeddings.x",
        "text_decoder.bert.encoder.x",
        "vision_proj.bias",
        "fusion_encoder_m.encoder.x",
        "text_decoder_m.bert.cls.x",
    ]


def test_another_image_size_resizes_the_position_table(tiny):
    larger = dataclasses.replace(
        tiny.config, vision=dataclasses.replace(tiny.config.vision, image_size=64)
    )
    model = MPLUG(larger)
    report = import_state_dict(export_state_dict(tiny), model)
    assert report.resized == ["visual_encoder.position_embedding"]
    assert report.is_complete
    expected = resize_position_table(tiny.visual_encoder.position_embedding.detach(), 16)
    assert torch.equal(model.visual_encoder.position_embedding, expected)


def test_another_vocabulary_is_reported_with_both_shapes(tiny):
    smaller = dataclasses.replace(
        tiny.config, text=dataclasses.replace(tiny.config.text, vocab_size=39)
    )
    report = import_state_dict(export_state_dict(tiny), MPLUG(smaller))
    assert not report.is_complete
    assert report.reinitialised["text_encoder.embedding.word.weight"] == "(40, 128) for (39, 128)"
    assert "another shape" in report.summary()


def test_unknown_names_and_the_temperature_are_reported(tiny):
    foreign = export_state_dict(tiny) | {
        "temp": torch.tensor(0.05),
        "image_queue": torch.zeros(4, 8),
        "vision_proj_m.weight": torch.zeros(1),
        "adapter.weight": torch.zeros(1),
    }
    report = import_state_dict(foreign, MPLUG(tiny.config))
    assert report.unexpected == ["adapter.weight"]
    assert report.temperature == pytest.approx(0.05)
    assert report.dropped["image_queue"] == "feature queue"
    assert report.dropped["vision_proj_m.weight"] == "momentum copy"
    assert "not understood: adapter.weight" in report.summary()


COPIED = (
    *("visual_encoder", "text_encoder", "fusion_encoder", "text_decoder"),
    *("vision_proj", "text_proj", "visn_fc", "visn_layer_norm"),
)
"""The modules of the released code that have a momentum copy, under their name and "_m"."""


def test_the_eight_momentum_copies_are_known_and_no_others(tiny):
    copies = {f"{name}_m.weight": torch.zeros(1) for name in COPIED}
    strangers = {f"{name}_m.weight": torch.zeros(1) for name in ("itm_head", "adapter", "proj")}
    strangers["my_visn_fc_m.weight"] = torch.zeros(1)
    report = import_state_dict(export_state_dict(tiny) | copies | strangers, MPLUG(tiny.config))
    assert {n for n, why in report.dropped.items() if why == "momentum copy"} == set(copies)
    assert sorted(report.unexpected) == sorted(strangers)


def test_checkpoint_without_tensors_is_refused(tiny):
    with pytest.raises(CheckpointError, match="no state dict"):
        import_state_dict({"epoch": 3}, tiny)


def test_every_model_tensor_has_a_row_in_the_table(tiny):
    assert set(key_table(tiny.config)) == set(tiny.state_dict())


@pytest.mark.parametrize("fusion", ["connected_attention", "co_attention", "none"])
def test_other_fusion_networks_have_no_released_layout(tiny, fusion):
    model = MPLUG(dataclasses.replace(tiny.config, fusion=fusion))
    with pytest.raises(CapabilityError, match=f"fusion = '{fusion}'"):
        export_state_dict(model)


def test_asymmetric_co_attention_is_the_released_layout_without_connected_layers(tiny):
    model = MPLUG(dataclasses.replace(tiny.config, fusion="asymmetric_co_attention"))
    exported = export_state_dict(model)
    assert "fusion_encoder.encoder.layer.3.crossattention.self.key.weight" in exported
    other = MPLUG(dataclasses.replace(tiny.config, connected_layers=()))
    assert import_state_dict(exported, other).is_complete


@pytest.mark.parametrize(
    ("depth", "connected", "residual", "stride"),
    [
        (6, (3,), True, 3),
        (6, (), True, 6),
        (6, (2, 4), True, 2),
        (6, (1, 2, 3, 4, 5), True, 1),
        (6, (5,), True, 5),
        (6, (2, 5), True, None),  # the paper's layout with S = 2
        (6, (3,), False, None),
        (6, (0, 3), True, None),
    ],
)
def test_which_stride_of_the_released_code_computes_a_model(
    tiny, depth, connected, residual, stride
):
    config = dataclasses.replace(
        tiny.config,
        fusion_depth=depth,
        connected_layers=connected,
        connected_image_residual=residual,
    )
    assert released_stride(config) == stride


def test_a_pre_norm_model_or_a_stem_has_no_released_layout(tiny):
    text = dataclasses.replace(tiny.config.text, pre_norm=True)
    vision = dataclasses.replace(tiny.config.vision, stem_widths=(4, 8))
    for changes, says in (({"text": text}, "pre_norm"), ({"vision": vision}, "stem_widths")):
        model = MPLUG(dataclasses.replace(tiny.config, **changes))
        with pytest.raises(CapabilityError, match=says):
            export_state_dict(model)
        with pytest.raises(CapabilityError, match=says):
            import_state_dict({"temp": torch.tensor(0.07)}, model)
