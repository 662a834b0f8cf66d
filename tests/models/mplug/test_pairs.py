"""Two images: against the network for one, and against its layers written out."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tests.tasks.finetuning.tiny import tiny_config
from triptych.core.errors import CapabilityError
from triptych.core.outputs import ImageFeatures, TextFeatures
from triptych.models.mplug.fusion import PairFusion
from triptych.models.mplug.model import MPLUG

WIDTH, HEADS = 16, 2


def _model(connected=(1,), pre_norm=False, residual=True, **fusion):
    torch.manual_seed(2)
    config = tiny_config(50, connected=(), pre_norm=pre_norm)
    config = replace(
        config,
        fusion_depth=3,
        connected_layers=connected,
        connected_image_residual=residual,
        **fusion,
    )
    return MPLUG(config).eval()


def _inputs():
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(2, 3, 5, WIDTH, generator=generator)
    text = torch.randn(3, 6, WIDTH, generator=generator)
    mask = torch.arange(6) < torch.tensor([6, 3, 4])[:, None]
    return images, text, mask


@pytest.mark.parametrize("merge", ["mean", "linear"])
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("connected", [(), (0, 2), (1,), (0, 1, 2)])
@torch.no_grad()
def test_twice_the_same_image_is_one_image(merge, pre_norm, residual, connected):
    model = _model(connected, pre_norm, residual)
    images, text, mask = _inputs()
    one = model.fuse(ImageFeatures(images[0]), TextFeatures(text, mask)).text_tokens
    pairs = PairFusion(model.fusion, model.config.text.embed_dim, merge)
    two = pairs(model.fusion, images[:1].expand(2, -1, -1, -1), text, mask)
    torch.testing.assert_close(two[mask], one[mask], atol=1e-5, rtol=1e-5)


def _heads(x):
    return x.unflatten(-1, (HEADS, -1)).transpose(-3, -2)


def _attend(query, key, value, allowed):
    scores = _heads(query) @ _heads(key).transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
    weights = torch.softmax(scores.masked_fill(~allowed[:, None, None], -torch.inf), dim=-1)
    return (weights @ _heads(value)).transpose(-3, -2).flatten(-2)


def _self_attention(block, x, allowed):
    query, key, value = block.attention.qkv(x).chunk(3, dim=-1)
    return block.attention.out(_attend(query, key, value, allowed))


def _cross_attention(attention, x, image):
    key, value = attention.key_value(image).chunk(2, dim=-1)
    all_allowed = torch.ones(image.shape[:2], dtype=torch.bool)
    return attention.out(_attend(attention.query(x), key, value, all_allowed))


def _feed(block, x):
    return block.mlp_norm(x + block.mlp.down(F.gelu(block.mlp.up(x))))


def _written_out(model, pairs, images, text, mask):
    """Post-norm: s = LN(l + SA(l)), c = LN(s + (CA1(s, v1) + CA2(s, v2)) / 2), LN(c + FFN(c))."""
    first, second = images
    for layer, (block, branch) in enumerate(zip(model.fusion.blocks, pairs.branches, strict=True)):
        if layer not in model.fusion.connected_layers:
            text = block.attention_norm(text + _self_attention(block, text, mask))
            read = _cross_attention(block.cross_attention, text, first)
            read = (read + _cross_attention(branch, text, second)) / 2
            text = _feed(block, block.cross_norm(text + read))
            continue
        parts = []
        for image in (first, second):
            allowed = torch.cat([torch.ones(image.shape[:2], dtype=torch.bool), mask], dim=1)
            parts.append(_self_attention(block, torch.cat([image, text], dim=1), allowed))
        size = first.shape[1]
        said = (parts[0][:, size:] + parts[1][:, size:]) / 2
        first, second = (
            image + _feed(block, block.attention_norm(image + part[:, :size]))
            for image, part in zip((first, second), parts, strict=True)
        )
        text = _feed(block, block.attention_norm(text + said))
    return text


@torch.no_grad()
def test_two_images_are_read_by_two_branches_and_merged_before_the_ffn():
    model = _model()
    pairs = PairFusion(model.fusion, model.config.text.embed_dim)
    for parameter in pairs.parameters():  # the branches no longer agree
        parameter.add_(0.2 * torch.randn(parameter.shape))
    images, text, mask = _inputs()
    found = pairs(model.fusion, images, text, mask)
    expected = _written_out(model, pairs, images, text, mask)
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-5, rtol=1e-4)
    swapped = pairs(model.fusion, images.flip(0), text, mask)
    assert (swapped - found)[mask].abs().max() > 0.01


@torch.no_grad()
def test_padding_changes_nothing():
    model = _model()
    images, text, mask = _inputs()
    pairs = PairFusion(model.fusion, model.config.text.embed_dim)
    other = text.masked_fill(~mask[..., None], 7.0)
    found = [pairs(model.fusion, images, states, mask)[mask] for states in (text, other)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("merge", ["mean", "linear"])
def test_every_branch_and_merge_is_trained(merge):
    model = _model()
    pairs = PairFusion(model.fusion, model.config.text.embed_dim, merge)
    names = dict(pairs.named_parameters())
    assert len(names) == 2 * 6 + (3 * 2 if merge == "linear" else 0)  # layers 0 and 2 have one
    weights = torch.linspace(-1, 1, WIDTH)
    (pairs(model.fusion, *_inputs())[:, 0] * weights).sum().backward()
    for name, parameter in names.items():
        assert parameter.grad.abs().max() > 1e-6, name
    own = model.fusion.blocks[0].cross_attention.query.weight
    assert own.grad.abs().max() > 0
    assert own.data_ptr() != pairs.branches[0].query.weight.data_ptr()


@pytest.mark.parametrize("fusion", ["co_attention", "none"])
def test_networks_that_cannot_read_two_images_say_so(fusion):
    with pytest.raises(CapabilityError, match=f"fusion '{fusion}' cannot read two images"):
        _model(fusion=fusion).prepare_two_images("mean")
