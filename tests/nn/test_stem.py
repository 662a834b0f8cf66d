"""The convolutional stem against torch's functional convolutions, one by one."""

import pytest
import torch
from torch.nn import functional as F

from triptych.core.errors import ConfigError
from triptych.nn.embeddings import ConvolutionalStem
from triptych.nn.init import init_weights
from triptych.nn.vision import VisionConfig, VisionTransformer


def _config(**changes):
    sizes = {"image_size": 32, "patch_size": 16, "embed_dim": 8, "depth": 1, "num_heads": 2}
    return VisionConfig(**sizes | changes)


def test_equals_the_operations_one_by_one():
    torch.manual_seed(0)
    stem = ConvolutionalStem(8, 16, (4, 6))
    init_weights(stem, 0.3)
    image = torch.randn(2, 3, 32, 48)
    x = image
    for convolution in stem.convolutions:
        x = F.conv2d(x, convolution.weight, stride=2, padding=1)
        mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        x = (x - mean) / (var + 1e-5).sqrt()  # scale 1, shift 0 when fresh
        x = F.gelu(x)
    x = F.conv2d(x, stem.patch_projection.weight, stem.patch_projection.bias, stride=4)
    expected = torch.stack([x[:, :, i, j] for i in range(2) for j in range(3)], dim=1)
    torch.testing.assert_close(stem(image), expected, atol=1e-5, rtol=1e-5)


def test_a_far_pixel_does_not_reach_another_patch():
    torch.manual_seed(0)
    stem = ConvolutionalStem(8, 16, (4, 6))
    init_weights(stem, 0.3)
    image = torch.randn(1, 3, 32, 32)
    changed = image.clone()
    changed[:, :, 24:, 24:] += 1  # the middle and end of the last patch
    before, after = stem(image), stem(changed)
    torch.testing.assert_close(before[:, :3], after[:, :3], atol=1e-6, rtol=0)
    assert (before[:, 3] - after[:, 3]).abs().max() > 1e-2


def test_fresh_weights_have_the_configured_deviation():
    torch.manual_seed(0)
    model = VisionTransformer(_config(stem_widths=(16, 32), patch_init_std=0.25))
    init_weights(model, 0.02)
    stem = model.patch_embedding
    assert stem.patch_projection.weight.std().item() == pytest.approx(0.25, rel=0.05)
    assert stem.convolutions[1].weight.std().item() == pytest.approx((16 * 9) ** -0.5, rel=0.05)


def test_a_stem_that_does_not_fit_the_patch_is_refused():
    with pytest.raises(ConfigError, match=r"stem_widths.*16 px"):
        _config(stem_widths=(4, 4, 4, 4, 4))
