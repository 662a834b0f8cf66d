"""The five fusion networks against torch's own layers, run text by text without padding."""

import dataclasses

import pytest
import torch
from torch import nn

from benchmarks.speed.plain import without_shortcuts
from tests.models.test_families import shrunken
from triptych.core.config import from_dict, to_dict
from triptych.core.errors import CapabilityError, ConfigError
from triptych.core.outputs import ImageFeatures, TextFeatures
from triptych.models.base import PairMatcher, match_pairs
from triptych.models.mplug.config import MPLUGConfig, strided_layers
from triptych.models.mplug.fusion import SkipConnectedFusion, build_fusion
from triptych.models.mplug.model import MPLUG
from triptych.nn.init import init_weights
from triptych.nn.packing import TokenGrid

pytestmark = pytest.mark.usefixtures("packed_at_any_width")

NAMES = (
    "skip_connected",
    "connected_attention",
    "co_attention",
    "asymmetric_co_attention",
    "none",
)
MASK = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
IMAGE_INDEX = torch.tensor([1, 0, 1])
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def _config(**changes):
    config = dataclasses.replace(shrunken("mplug_base_patch16_256"), **changes)
    return dataclasses.replace(
        config, text=dataclasses.replace(config.text, dropout=0.0, attention_dropout=0.0)
    )


def _fusion(**changes):
    torch.manual_seed(0)
    fusion = build_fusion(_config(**changes))
    init_weights(fusion, 0.3)
    for name, parameter in fusion.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return fusion.eval()


def _states(num_images=3):
    torch.manual_seed(1)
    return torch.randn(num_images, 5, 16), torch.randn(3, 3, 16)


PAIRS = {
    "attention.qkv": "self_attn.in_proj_",
    "attention.out": "self_attn.out_proj.",
    "attention_norm": "norm1.",
    "mlp.up": "linear1.",
    "mlp.down": "linear2.",
}


def _torch_layer(block):
    """Return torch's post-norm layer with the weights of a block."""
    kind = (
        nn.TransformerEncoderLayer if block.cross_attention is None else nn.TransformerDecoderLayer
    )
    layer = kind(16, 2, 64, 0.0, "gelu", 1e-12, batch_first=True).eval()
    pairs = PAIRS | {"mlp_norm": "norm2." if block.cross_attention is None else "norm3."}
    if block.cross_attention is not None:
        pairs |= {"cross_norm": "norm2.", "cross_attention.out": "multihead_attn.out_proj."}
    state = block.state_dict()
    loaded = {t + k: state[f"{n}.{k}"] for n, t in pairs.items() for k in ("weight", "bias")}
    if block.cross_attention is not None:
        for kind in ("weight", "bias"):
            parts = [state[f"cross_attention.{n}.{kind}"] for n in ("query", "key_value")]
            loaded[f"multihead_attn.in_proj_{kind}"] = torch.cat(parts)
    layer.load_state_dict(loaded)
    return layer


def _expected(fusion, config, image, text):
    """Fuse one image (1, N, D) with one text (1, L, D) by the papers' descriptions."""
    if config.fusion == "none":
        return image, text
    for layer, block in enumerate(fusion.blocks):
        theirs = _torch_layer(block)
        is_connected = config.fusion == "connected_attention" or (
            config.fusion == "skip_connected" and layer in config.connected_layers
        )
        if is_connected:
            both = theirs(torch.cat([image, text], dim=1))
            new_image, text = both[:, : image.shape[1]], both[:, image.shape[1] :]
            adds = config.fusion == "skip_connected" and config.connected_image_residual
            image = image + new_image if adds else new_image
        elif config.fusion == "co_attention":
            other = _torch_layer(fusion.image_blocks[layer])
            text, image = theirs(text, image), other(image, text)
        else:
            text = theirs(text, image)
    return image, text


SETTINGS = [{"fusion": name} for name in NAMES]
SETTINGS += [
    {"connected_layers": (2, 5)},
    {"connected_layers": (0, 3), "connected_image_residual": False},
]
NAMED = pytest.mark.parametrize("changes", SETTINGS, ids=str)


@torch.no_grad()
@pytest.mark.parametrize("indexed", [False, True])
@NAMED
def test_networks_equal_torchs_layers_run_text_by_text(changes, indexed):
    config, fusion = _config(**changes), _fusion(**changes)
    image, text = _states(2 if indexed else 3)
    index = IMAGE_INDEX if indexed else None
    image_out, text_out, left = fusion(image, text, MASK, index)
    for row in range(3):
        own = int(IMAGE_INDEX[row]) if indexed else row
        length = int(MASK[row].sum())
        expected = _expected(fusion, config, image[own][None], text[row, :length][None])
        found = image_out[row if left is None else int(left[row])]
        torch.testing.assert_close(found, expected[0][0], **CLOSE)
        torch.testing.assert_close(text_out[row, :length], expected[1][0], **CLOSE)


def _run(fusion, image, text, mask, index):
    """Return outputs at real tokens, one image row a text, and their gradients."""
    image, text = (x.clone().requires_grad_() for x in (image, text))
    image_out, text_out, left = fusion(image, text, mask, index)
    image_out = image_out if left is None else image_out[left]
    outputs = [image_out, text_out[:, :3][MASK]]
    weights = [torch.linspace(-1, 1, out.numel()).view(out.shape) for out in outputs]
    loss = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
    image_grad, text_grad, *grads = torch.autograd.grad(
        loss, [image, text, *fusion.parameters()], allow_unused=True
    )
    return [*outputs, image_grad, text_grad[:, :3][MASK], *grads]


@pytest.mark.parametrize("pre_norm", [False, True])
@NAMED
def test_padding_changes_no_output_and_no_gradient(changes, pre_norm):
    text_config = dataclasses.replace(shrunken("mplug_base_patch16_256").text, pre_norm=pre_norm)
    fusion = _fusion(**changes, text=text_config)
    image, text = _states(2)
    noisy = text.masked_fill(~MASK[..., None], 40.0)
    wide = nn.functional.pad(noisy, (0, 0, 0, 2), value=-30.0)
    results = [
        _run(fusion, image, text, MASK, IMAGE_INDEX),
        _run(fusion, image, noisy, MASK, IMAGE_INDEX),
        _run(fusion, image, wide, nn.functional.pad(MASK, (0, 2)), IMAGE_INDEX),
    ]
    with without_shortcuts():
        results.append(_run(fusion, image, noisy, MASK, IMAGE_INDEX))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("indexed", [False, True])
@NAMED
def test_states_that_are_read_do_not_depend_on_the_others(changes, indexed):
    fusion = _fusion(**changes)
    image, text = _states(2 if indexed else 3)
    index = IMAGE_INDEX if indexed else None
    read = torch.tensor([[True, False, True], [True, True, False], [False, False, False]])
    every = fusion(image, text, MASK, index)
    some = fusion(image, text, MASK, index, read)
    torch.testing.assert_close(some[0], every[0], **CLOSE)
    torch.testing.assert_close(some[1][read & MASK], every[1][read & MASK], **CLOSE)


@pytest.mark.parametrize("name", ["skip_connected", "asymmetric_co_attention", "co_attention"])
def test_rows_of_an_image_are_grouped_or_not(name, monkeypatch):
    """A device whose host does not know how many texts read an image computes the same."""
    fusion = _fusion(fusion=name)
    image, text = (x.requires_grad_() for x in _states(2))
    found = []
    for groups in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(TokenGrid, "counts_at_once", staticmethod(lambda _, yes=groups: yes))
            states = fusion(image, text, MASK, IMAGE_INDEX, MASK)[1] * MASK[..., None]
        found.append((states, *torch.autograd.grad(states.square().sum(), (image, text))))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, **CLOSE)


def test_unread_states_are_not_computed():
    image, text = _states()
    read = torch.zeros(3, 3, dtype=torch.bool)
    read[:, 0] = True
    _, states, _ = _fusion()(image, text, MASK, None, read)
    assert bool(states[:, 0].any())
    assert not states[:, 1:].any()


@torch.no_grad()
def test_only_layers_that_update_the_image_update_it():
    image, text = _states()
    for name in ("asymmetric_co_attention", "none"):
        image_out, _, _ = _fusion(fusion=name)(image, text, MASK)
        assert torch.equal(image_out, image)
    image_out, text_out, _ = _fusion(fusion="none")(image, text, MASK)
    assert torch.equal(text_out, text)


def test_connected_layers_have_no_cross_attention():
    fusion = _fusion(fusion_depth=3, connected_layers=(1,))
    assert [block.cross_attention is None for block in fusion.blocks] == [False, True, False]


@pytest.mark.parametrize(
    ("depth", "stride", "layout", "expected"),
    [
        (6, 1, "released", (1, 2, 3, 4, 5)),
        (6, 2, "released", (2, 4)),
        (6, 3, "released", (3,)),
        (6, 6, "released", ()),
        (6, 1, "paper", (1, 3, 5)),
        (6, 2, "paper", (2, 5)),
        (6, 3, "paper", (3,)),
        (6, 6, "paper", ()),
        (8, 3, "paper", (3, 7)),
    ],
)
def test_connected_layers_of_a_stride(depth, stride, layout, expected):
    # Released rows: the layers that ran in a trace of the released code (specified strides).
    assert strided_layers(depth, stride, layout) == expected


def test_a_stride_below_one_is_refused():
    with pytest.raises(ConfigError, match="stride = 0"):
        strided_layers(6, 0)


def test_configs_stored_before_there_was_a_choice_still_load():
    plain = to_dict(shrunken("mplug_tiny"))
    del plain["fusion"]
    config = from_dict(MPLUGConfig, plain)
    assert config == shrunken("mplug_tiny")
    assert isinstance(build_fusion(config), SkipConnectedFusion)


def test_an_unknown_network_is_refused():
    with pytest.raises(ConfigError, match="skip_connected"):
        from_dict(MPLUGConfig, to_dict(shrunken("mplug_tiny")) | {"fusion": "skipped"})


@torch.no_grad()
@pytest.mark.parametrize("name", ["mplug_base_patch16_256", "mplug_large_patch14_224"])
def test_an_embedding_alone_is_the_same(name):
    torch.manual_seed(0)
    model = MPLUG(shrunken(name)).eval()
    image = torch.randn(2, 3, model.image_size, model.image_size)
    expected = model.embed_image(model.encode_image(image))
    torch.testing.assert_close(model.embed_pixels(image), expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES[:-1])
def test_pairs_are_matched_with_less_work_alike(name):
    torch.manual_seed(0)
    model = MPLUG(_config(fusion=name)).eval()
    init_weights(model, 0.3)
    image, text = _states(2)
    features = ImageFeatures(image), TextFeatures(text, MASK)
    expected = model.match_logits(model.fuse(*features, image_index=IMAGE_INDEX))
    assert isinstance(model, PairMatcher)
    torch.testing.assert_close(match_pairs(model, *features, IMAGE_INDEX), expected, **CLOSE)


@torch.no_grad()
def test_without_fusion_nothing_can_be_matched():
    torch.manual_seed(0)
    model = MPLUG(_config(fusion="none")).eval()
    image, text = _states()
    fused = model.fuse(ImageFeatures(image), TextFeatures(text, MASK))
    assert model.capabilities == {"itc", "mlm", "decode"}
    with pytest.raises(CapabilityError, match="leave itm out"):
        model.match_logits(fused)
    assert "itm" in MPLUG(_config()).capabilities
