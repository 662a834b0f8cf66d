"""Large and small crops of one image, drawn from the image's own generator."""

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.core.errors import ConfigError
from triptych.data.collate.image import MultiCropCollator, MultiCropConfig
from triptych.data.order import SampleRng
from triptych.data.records import ImageSource, Record
from triptych.data.stream import build_loader
from triptych.data.transforms.pipeline import (
    ImageTransform,
    ImageTransformConfig,
    crop,
    draw_crop,
    mirror,
    resize_fast,
)

IMAGE = ImageTransformConfig(
    image_size=32, crop_scale=None, flip_probability=0.0, randaugment_num_ops=0
)
PLAIN = MultiCropConfig(num_small=3, small_size=16, num_color_ops=0)


@pytest.fixture
def records(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
        found.append(Record(record_id=str(number), image=ImageSource(str(path))))
    return found


def first_batch(records, config, **options):
    loader = build_loader(
        records,
        MultiCropCollator(IMAGE, config),
        ImageTransform(IMAGE, train=True),
        seed=5,
        local_batch_size=3,
        train=True,
        **options,
    )
    iterator = iter(loader)
    batch = next(iterator)
    iterator.close()
    return batch


def test_crops_are_those_of_the_images_generator(records):
    batch = first_batch(records, PLAIN)
    assert batch["large_crops"].shape == (2, 3, 3, 32, 32)
    assert batch["small_crops"].shape == (3, 3, 3, 16, 16)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGE.mean, IMAGE.std))
    for row, index in enumerate(batch["index"].tolist()):
        pixels = np.asarray(Image.open(records[index].image.path))
        rng = SampleRng().at(5, 0, index)
        rng.random()  # whether the whole image is mirrored; it never is
        for kind, number, size, scale in (
            ("large", 2, 32, PLAIN.large_scale),
            ("small", 3, 16, PLAIN.small_scale),
        ):
            for place in range(number):
                region = crop(pixels, draw_crop(50, 40, scale, IMAGE.crop_ratio, rng))
                expected = resize_fast(region, size, size)
                if rng.random() < 0.5:
                    expected = mirror(expected)
                expected = torch.from_numpy(expected.copy()).permute(2, 0, 1) / 255
                found = batch[f"{kind}_crops"][place, row]
                torch.testing.assert_close(found, (expected - mean) / std, atol=1e-5, rtol=1e-5)


def test_workers_change_nothing(records):
    config = MultiCropConfig(num_small=2, small_size=16)
    alone, helped = first_batch(records, config), first_batch(records, config, num_workers=1)
    assert all(torch.equal(tensor, helped[name]) for name, tensor in alone.items())


def test_there_may_be_no_small_crop(records):
    batch = first_batch(records, MultiCropConfig(num_small=0, small_size=16))
    assert batch["small_crops"].shape == (0, 3, 3, 16, 16)


def test_crops_of_crops_and_single_crops_are_errors():
    cropped = ImageTransformConfig(image_size=32)
    with pytest.raises(ConfigError, match="crop_scale"):
        MultiCropCollator(cropped, PLAIN)
    with pytest.raises(ConfigError, match="two crops or more"):
        MultiCropConfig(num_large=1, num_small=0)
