"""Grids, the pixel map, the decoder, and sizes that fit a patch grid."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from triptych.core.errors import CapabilityError, ConfigError, DataError
from triptych.models.dvae.config import DVAEConfig, codebook_image_size
from triptych.models.dvae.family import VARIANTS
from triptych.models.dvae.model import DVAE, PIXEL_MEAN, PIXEL_STD, map_pixels, unmap_pixels

SMALL = DVAEConfig(image_size=24, num_codes=10, hidden_dim=8, blocks_per_group=2, code_dim=6)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DVAE(SMALL).eval()


def test_pixel_map_is_there_and_back():
    x = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(map_pixels(x), torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(unmap_pixels(map_pixels(x)), x)
    torch.testing.assert_close((x - PIXEL_MEAN[0]) / PIXEL_STD[0], map_pixels(x))


@pytest.mark.parametrize(
    ("image", "patch", "codebook"), [(224, 16, 112), (64, 16, 32), (64, 8, 64), (384, 16, 192)]
)
def test_tokenizers_view_has_a_code_a_patch(image, patch, codebook):
    assert codebook_image_size(image, patch) == codebook
    assert DVAEConfig(image_size=codebook).grid_size == image // patch


def test_codes_are_in_row_major_order(model):
    image = torch.rand(2, 3, 24, 16)
    logits = model.encoder(image)
    assert logits.shape == (2, 10, 3, 2)
    codes = model.codes(image)
    assert codes.tolist() == [
        [int(logits[b, :, r, c].argmax()) for r in range(3) for c in range(2)] for b in range(2)
    ]


def test_decoding_codes_equals_decoding_one_hot(model):
    codes = torch.randint(10, (2, 3, 3))
    one_hot = F.one_hot(codes, 10).permute(0, 3, 1, 2).float()
    expected = model.decoder(one_hot)
    found = model.decoder.decode_codes(codes)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == (2, 3, 24, 24)
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.decode(codes), unmap_pixels(expected[0].sigmoid()))


def test_a_code_acts_on_its_own_place_most(model):
    codes = torch.zeros(1, 3, 3, dtype=torch.int64)
    other = codes.clone()
    other[0, 2, 0] = 7
    change = (model.decoder.decode_codes(codes)[0] - model.decoder.decode_codes(other)[0]).abs()
    places = change.mean(1).view(3, 8, 3, 8).mean((1, 3))
    assert places.argmax() == 6  # row 2, column 0


def test_reconstruction_is_the_decoded_codes(model):
    image = torch.rand(1, 3, 24, 24)
    codes = model.codes(image).view(1, 3, 3)
    torch.testing.assert_close(model.reconstruct(image), model.decode(codes))


def test_codes_carry_no_gradient(model):
    assert not model.codes(torch.rand(1, 3, 8, 8, requires_grad=True)).requires_grad


def test_a_tokenizer_may_have_no_decoder():
    model = DVAE(dataclasses.replace(SMALL, has_decoder=False))
    assert not any(name.startswith("decoder") for name in model.state_dict())
    with pytest.raises(CapabilityError, match="no decoder"):
        model.decode(torch.zeros(1, 1, 1, dtype=torch.int64))


def test_sides_that_are_no_multiples_of_eight_are_errors(model):
    with pytest.raises(DataError, match=r"\(20, 24\) px: its sides must be multiples of 8"):
        model.codes(torch.rand(1, 3, 20, 24))
    with pytest.raises(ConfigError, match="image_size = 20"):
        DVAEConfig(image_size=20)
    with pytest.raises(ConfigError, match="image_size = 65"):
        codebook_image_size(65, 16)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variants_build_on_meta(name):
    config = VARIANTS[name]()
    with torch.device("meta"):
        model = DVAE(config)
    counted = sum(p.numel() for p in model.parameters())
    last, first = config.hidden_dim * 8, config.hidden_dim
    assert model.encoder.output.weight.shape == (config.num_codes, last, 1, 1)
    assert model.encoder.input.weight.shape == (first, 3, 7, 7)
    assert counted == sum(t.numel() for t in model.state_dict().values())


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_dim", 6), ("num_codes", 1), ("blocks_per_group", 0)]
)
def test_sizes_out_of_range_are_errors(field, value):
    with pytest.raises(ConfigError, match=field):
        DVAEConfig(**{field: value})
