import dataclasses

import numpy as np
import pytest
import torch

from triptych.core.config import from_dict, to_dict
from triptych.core.errors import ConfigError
from triptych.data.transforms.pipeline import (
    ImageTransform,
    ImageTransformConfig,
    TransformedImage,
    normalise_batch,
)


def noise(height=40, width=60, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_config_survives_plain_values():
    config = ImageTransformConfig(image_size=64, crop_scale=None, mean=(0.1, 0.2, 0.3))
    assert from_dict(ImageTransformConfig, to_dict(config)) == config
    assert from_dict(ImageTransformConfig, to_dict(ImageTransformConfig())).mean[0] == 0.48145466


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_size", 0), ("crop_scale", (0.5, 0.2)), ("crop_scale", (0.0, 1.0)),
     ("flip_probability", 1.5), ("randaugment_num_ops", -1), ("randaugment_magnitude", 11.0),
     ("std", (1.0, 0.0, 1.0)), ("crop_ratio", (2.0, 1.0))],
)  # fmt: skip
def test_values_out_of_range_name_the_field(field, value):
    with pytest.raises(ConfigError, match=field):
        ImageTransformConfig(**{field: value})


def test_normalise_equals_numpy():
    images = [noise(8, 8, seed) for seed in range(3)]
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    expected = (np.stack(images).transpose(0, 3, 1, 2) / 255 - np.array(mean)[:, None, None]) / (
        np.array(std)[:, None, None]
    )
    found = normalise_batch(images, mean, std)
    assert found.is_contiguous() and found.dtype is torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)


def test_evaluation_resizes_and_draws_nothing():
    pixels = noise(20, 32)
    transform = ImageTransform(ImageTransformConfig(image_size=32), train=False)
    found = transform.apply(pixels)
    assert found.pixels.shape == (32, 32, 3)
    assert (found.width, found.height, found.flipped) == (32, 20, False)
    np.testing.assert_array_equal(found.pixels, transform(pixels, np.random.default_rng(3)))


def test_training_is_decided_by_the_generator():
    pixels = noise()
    transform = ImageTransform(ImageTransformConfig(image_size=24), train=True)
    results = [transform(pixels, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()


def test_flip_share_and_prohibition():
    config = ImageTransformConfig(image_size=8, crop_scale=None, randaugment_num_ops=0)
    transform = ImageTransform(config, train=True)
    pixels = noise(8, 8)
    flips = []
    for seed in range(400):
        found = transform.apply(pixels, np.random.default_rng(seed))
        np.testing.assert_array_equal(found.pixels, pixels[:, ::-1] if found.flipped else pixels)
        flips.append(found.flipped)
        fixed = transform.apply(pixels, np.random.default_rng(seed), allow_flip=False)
        np.testing.assert_array_equal(fixed.pixels, pixels)
        assert not fixed.flipped
    assert np.mean(flips) == pytest.approx(0.5, abs=0.1)  # standard deviation 0.025


def test_forbidding_the_flip_changes_nothing_else():
    config = ImageTransformConfig(image_size=16, randaugment_num_ops=2, flip_probability=0.0)
    pixels = noise()
    for seed in range(20):
        with_flip = ImageTransform(config, train=True)(pixels, np.random.default_rng(seed))
        always = dataclasses.replace(config, flip_probability=1.0)
        without = ImageTransform(always, train=True)(
            pixels, np.random.default_rng(seed), allow_flip=False
        )
        np.testing.assert_array_equal(with_flip, without)


def test_which_transforms_keep_boxes():
    keeps = ImageTransformConfig(crop_scale=None, randaugment_geometric=False)
    assert keeps.keeps_boxes
    assert not dataclasses.replace(keeps, crop_scale=(0.5, 1.0)).keeps_boxes
    assert not dataclasses.replace(keeps, randaugment_geometric=True).keeps_boxes
    still = dataclasses.replace(keeps, randaugment_geometric=True, randaugment_num_ops=0)
    assert still.keeps_boxes


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_box_follows_the_image(flip):
    # A white rectangle: its place is measured in the transformed image.
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[4:20, 8:24] = 255
    config = ImageTransformConfig(
        image_size=80, crop_scale=None, flip_probability=flip, randaugment_num_ops=0
    )
    found = ImageTransform(config, train=True).apply(pixels, np.random.default_rng(0))
    rows, columns = np.nonzero(found.pixels[..., 0] > 127)
    left, right = columns.min() / 80, (columns.max() + 1) / 80
    top, bottom = rows.min() / 80, (rows.max() + 1) / 80
    expected = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
    np.testing.assert_allclose(found.box_cxcywh((8, 4, 16, 16)), expected, atol=1e-12)


def test_box_outside_the_image_is_cut():
    image = TransformedImage(noise(4, 4), width=100, height=50)
    # x from -10 to 30 is 0 to 0.3; y from 40 to 60 is 0.8 to 1
    np.testing.assert_allclose(image.box_cxcywh((-10, 40, 40, 20)), (0.15, 0.9, 0.3, 0.2))
