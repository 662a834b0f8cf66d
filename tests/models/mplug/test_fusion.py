"""Connected and asymmetric layers, written out with the block's parts."""

import dataclasses

import pytest
import torch

from tests.models.test_registry import shrunken
from triptych.models.mplug.fusion import SkipConnectedFusion
from triptych.nn.init import init_weights


def _fusion(**changes):
    torch.manual_seed(0)
    config = dataclasses.replace(shrunken("mplug_base_patch16_256"), **changes)
    fusion = SkipConnectedFusion(config)
    init_weights(fusion, 0.3)
    return fusion.eval()


def _states():
    torch.manual_seed(1)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    return torch.randn(2, 5, 16), torch.randn(2, 3, 16), mask


@torch.no_grad()
def test_no_connected_layer_leaves_the_image_alone():
    image, text, mask = _states()
    image_out, text_out, _ = _fusion(connected_layers=())(image, text, mask)
    assert torch.equal(image_out, image)
    assert not torch.allclose(text_out, text, atol=1e-2)


@pytest.mark.parametrize("residual", [True, False])
@torch.no_grad()
def test_connected_layer_is_one_block_over_image_and_text(residual):
    fusion = _fusion(fusion_depth=1, connected_layers=(0,), connected_image_residual=residual)
    image, text, mask = _states()
    image_out, text_out, _ = fusion(image, text, mask)
    for row in range(2):
        real = int(mask[row].sum())
        joint = torch.cat([image[row], text[row, :real]])[None]
        expected = fusion.blocks[0](joint)[0]
        image_expected = expected[:5] + image[row] if residual else expected[:5]
        torch.testing.assert_close(image_out[row], image_expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(text_out[row, :real], expected[5:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_text_reads_the_image_updated_by_the_connected_layer():
    fusion = _fusion(fusion_depth=2, connected_layers=(0,))
    image, text, mask = _states()
    image_out, text_out, _ = fusion(image, text, mask)
    one = _fusion(fusion_depth=1, connected_layers=(0,))
    one.blocks[0].load_state_dict(fusion.blocks[0].state_dict())
    image_mid, text_mid, _ = one(image, text, mask)
    assert torch.equal(image_mid, image_out)
    cross = fusion.blocks[1].cross_attention.project(image_mid)
    real = text_mid[0, :3][None]
    expected = fusion.blocks[1](real, None, cross.select(torch.tensor([0])))
    torch.testing.assert_close(text_out[:1], expected, atol=1e-5, rtol=1e-5)


def test_connected_layers_have_no_cross_attention():
    fusion = _fusion(fusion_depth=3, connected_layers=(1,))
    assert [block.cross_attention is None for block in fusion.blocks] == [False, True, False]
