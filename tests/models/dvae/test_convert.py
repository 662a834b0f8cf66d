"""Released image tokenizers in and out; the source is transformers' FlavaImageCodebook."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from triptych.core.errors import CheckpointError
from triptych.models.dvae.config import DVAEConfig
from triptych.models.dvae.convert import (
    config_for,
    encoder_keys,
    export_decoder,
    export_encoder,
    import_decoder,
    import_encoder,
)
from triptych.models.dvae.model import DVAE

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "flava_codebook.safetensors"


def theirs(hidden_size=8, blocks=2, vocab_size=50, seed=0):
    """Return transformers' model with random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.FlavaImageCodebookConfig(
        hidden_size=hidden_size, num_blocks_per_group=blocks, vocab_size=vocab_size
    )
    model = transformers.FlavaImageCodebook(config).eval()
    for parameter in model.parameters():  # so large that neighbouring places differ in their code
        fan_in = parameter[0].numel()
        parameter.data.normal_(std=2 * fan_in**-0.5 if parameter.ndim > 1 else 0.02)
    return model


def golden():
    """Return weights, input and outputs of transformers 5.23, stored."""
    tensors = load_file(GOLDEN)
    weights = {k.removeprefix("weights/"): t for k, t in tensors.items() if "/" in k}
    return weights, tensors["image"], tensors["logits"], tensors["codes"]


def ours(released):
    model = DVAE(config_for(released, image_size=32)).eval()
    return model, import_encoder(released, model)


@torch.no_grad()
def test_stored_outputs_of_transformers():
    weights, image, logits, codes = golden()
    model, report = ours(weights)
    assert report.is_complete
    torch.testing.assert_close(model.encoder(image), logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.codes(image), codes.flatten(1))


@torch.no_grad()
@pytest.mark.parametrize(("hidden", "blocks", "codes"), [(8, 2, 50), (16, 1, 300), (4, 3, 7)])
def test_codes_and_logits_equal_those_of_transformers(hidden, blocks, codes):
    released = theirs(hidden, blocks, codes)
    model, report = ours(released.state_dict())
    assert report.is_complete
    image = 0.8 * torch.rand(3, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3) + 0.1
    expected = released(image)
    torch.testing.assert_close(model.encoder(image), expected, atol=1e-4, rtol=1e-5)
    assert torch.equal(model.codes(image), released.get_codebook_indices(image).flatten(1))
    assert expected.argmax(1).unique().numel() > 2  # the comparison is not of one code


@torch.no_grad()
def test_residual_paths_take_part_in_the_comparison():
    weights, image, _, _ = golden()
    model, _ = ours(weights)
    before = model.encoder(image)
    model.encoder.groups[1][0].convs[2].weight.mul_(1.5)
    assert (model.encoder(image) - before).abs().max() > 1e-3


def test_dalle_size_has_the_names_and_the_number_of_parameters_of_the_released_encoder():
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        released = transformers.FlavaImageCodebook(transformers.FlavaImageCodebookConfig())
        model = DVAE(DVAEConfig())
    exported = export_encoder(model)
    shapes = {name: tensor.shape for name, tensor in released.state_dict().items()}
    assert {name: tensor.shape for name, tensor in exported.items()} == shapes
    assert sum(p.numel() for p in model.encoder.parameters()) == 53_786_240  # spec: frozen encoder


def test_export_is_bit_equal_to_the_import():
    weights, *_ = golden()
    model, _ = ours(weights)
    exported = export_encoder(model)
    assert exported.keys() == weights.keys()
    assert all(torch.equal(exported[k], t) for k, t in weights.items())


def test_a_whole_flava_checkpoint_gives_its_codebook_alone():
    weights, *_ = golden()
    whole = {f"image_codebook.{k}": t for k, t in weights.items()}
    whole["flava.logit_scale"] = torch.tensor(2.0)
    model = DVAE(config_for(whole, image_size=16))
    report = import_encoder(whole, model)
    assert report.is_complete
    assert report.dropped == {"flava.logit_scale": "not of the image tokenizer"}
    assert torch.equal(model.encoder.output.weight, weights["blocks.output.conv.weight"])


def to_openai(name):
    """DALL-E's name of a tensor of transformers: the rule of transformers' released converter."""
    name = name.replace(".group.", ".").replace("res_path.path.", "res_path.")
    return name.removesuffix("weight") + "w" if name.endswith("weight") else name[:-4] + "b"


def test_dalle_names_import_and_export():
    weights, *_ = golden()
    openai = {to_openai(name): tensor for name, tensor in weights.items()}
    assert "blocks.group_2.block_1.id_path.w" in openai
    assert "blocks.group_1.block_2.res_path.conv_4.b" in openai
    model = DVAE(config_for(openai, image_size=16))
    assert import_encoder(openai, model).is_complete
    exported = export_encoder(model, "openai")
    assert exported.keys() == openai.keys()
    assert all(torch.equal(exported[k], t) for k, t in openai.items())


def test_decoder_survives_dalles_names():
    torch.manual_seed(0)
    config = DVAEConfig(image_size=16, num_codes=20, hidden_dim=8, blocks_per_group=2, code_dim=6)
    model, other = DVAE(config), DVAE(config)
    exported = export_decoder(model)
    assert exported["blocks.input.w"].shape == (6, 20, 1, 1)
    assert exported["blocks.group_1.block_1.res_path.conv_1.w"].shape == (16, 6, 1, 1)
    assert exported["blocks.group_1.block_1.res_path.conv_4.w"].shape == (64, 16, 3, 3)
    assert exported["blocks.output.conv.w"].shape == (6, 8, 1, 1)
    assert "blocks.group_1.block_2.id_path.w" not in exported
    assert import_decoder(exported, other).is_complete
    codes = torch.randint(20, (1, 2, 2))
    assert torch.equal(model.decode(codes), other.decode(codes))


def test_prefixed_table_serves_a_model_that_holds_an_encoder():
    config = dataclasses.replace(DVAEConfig(), hidden_dim=8, num_codes=5)
    table = encoder_keys(config, "transformers", ours="codebook.", theirs="image_codebook.")
    assert table["codebook.groups.2.0.shortcut.bias"] == (
        "image_codebook.blocks.group_3.group.block_1.id_path.bias",
    )


def test_what_is_missing_or_of_another_size_is_reported():
    released, *_ = golden()
    model = DVAE(dataclasses.replace(config_for(released), num_codes=60))
    del released["blocks.group_1.group.block_1.res_path.path.conv_1.bias"]
    released["blocks.riddle"] = torch.zeros(1)
    report = import_encoder(released, model)
    assert report.missing == ["encoder.groups.0.0.convs.0.bias"]
    assert set(report.reinitialised) == {"encoder.output.weight", "encoder.output.bias"}
    assert report.unexpected == ["blocks.riddle"]


@pytest.mark.parametrize("read", [lambda x: import_encoder(x, None), config_for])
def test_a_file_without_a_tokenizer_is_an_error(read):
    with pytest.raises(CheckpointError, match="holds no image tokenizer"):
        read({"flava.logit_scale": torch.zeros(())})
