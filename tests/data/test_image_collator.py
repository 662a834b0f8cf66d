"""The encoder's and the tokenizer's view of one crop, masked patches, and stored codes."""

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.core.errors import ConfigError
from triptych.data.codes import CodesAbout, CodeShardWriter
from triptych.data.collate.image import (
    CODEBOOK_MEAN,
    CODEBOOK_STD,
    ImageCollator,
    MaskedImageCollator,
)
from triptych.data.masking import BlockMaskingConfig, block_masks, draw_mask_key
from triptych.data.order import SampleRng
from triptych.data.readers.webdataset import read_webdataset
from triptych.data.records import ImageSource, Record
from triptych.data.samples import SharedImage
from triptych.data.source import DataSourceConfig, RecordList
from triptych.data.stream import build_loader
from triptych.data.transforms.pipeline import ImageTransform, ImageTransformConfig, crop, draw_crop
from triptych.models.dvae.model import PIXEL_MEAN, PIXEL_STD

WHOLE = ImageTransformConfig(
    image_size=32, crop_scale=None, flip_probability=0.0, randaugment_num_ops=0
)
CROPPED = ImageTransformConfig(image_size=32, crop_scale=(0.5, 1.0), randaugment_num_ops=0)


@pytest.fixture
def images(tmp_path):
    """Six images of low frequencies, 40 to 60 px."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(6):
        small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        path = tmp_path / f"{number}.png"
        Image.fromarray(small).resize((60, 40), Image.Resampling.BICUBIC).save(path)
        records.append(Record(record_id=str(number), image=ImageSource(str(path))))
    return records


def batches(records, collator, transform, number, **options):
    loader = build_loader(
        records,
        collator,
        ImageTransform(transform, train=True),
        seed=3,
        local_batch_size=4,
        train=True,
        **options,
    )
    iterator = iter(loader)
    found = [next(iterator) for _ in range(number)]
    iterator.close()
    return found


def test_the_range_of_the_tokenizers_view_is_the_models():
    assert pytest.approx(PIXEL_MEAN) == CODEBOOK_MEAN
    assert pytest.approx(PIXEL_STD) == CODEBOOK_STD


def test_tokenizers_view_is_the_same_crop_resized_by_lanczos(images):
    collator = MaskedImageCollator(CROPPED, patch_size=8, codebook_size=24)
    batch = batches(images, collator, CROPPED, 1)[0]
    assert batch["codebook_image"].shape == (4, 3, 24, 24)
    assert batch["image"].shape == (4, 3, 32, 32)
    for row, index in enumerate(batch["index"].tolist()):
        pixels = np.asarray(Image.open(images[index].image.path))
        rng = SampleRng().at(3, 0, index)
        region = crop(pixels, draw_crop(60, 40, (0.5, 1.0), CROPPED.crop_ratio, rng))
        view = Image.fromarray(region).resize((24, 24), Image.Resampling.LANCZOS)
        if rng.random() < 0.5:  # mirrored after the crop was drawn
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        expected = torch.from_numpy(0.8 * np.asarray(view, dtype=np.float32) / 255 + 0.1)
        found = batch["codebook_image"][row].permute(1, 2, 0)
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_both_views_show_the_same_thing(images):
    collator = MaskedImageCollator(CROPPED, patch_size=8, codebook_size=32)
    batch = batches(images, collator, CROPPED, 1)[0]
    mean, std = (torch.tensor(v)[:, None, None] for v in (CROPPED.mean, CROPPED.std))
    image = 0.8 * (batch["image"] * std + mean) + 0.1
    assert (image - batch["codebook_image"]).abs().mean() < 0.02
    assert (image.flip(-1) - batch["codebook_image"]).abs().mean() > 0.05


def test_masks_are_those_of_the_samples_generators(images):
    masking = BlockMaskingConfig(hidden_share=0.5, min_block_share=0.1)
    collator = MaskedImageCollator(WHOLE, patch_size=4, codebook_size=64, masking=masking)
    batch = batches(images, collator, WHOLE, 1)[0]
    keys = []
    for index in batch["index"].tolist():
        rng = SampleRng().at(3, 0, index)
        rng.random()  # whether to mirror
        keys.append(draw_mask_key(rng))
    expected = block_masks(np.array(keys, dtype=np.uint64), 8, masking)
    assert np.array_equal(batch["hidden_patches"].numpy(), expected)
    assert 0 < expected.sum(1).min() <= expected.sum(1).max() == 32


def test_workers_change_nothing(images):
    collator = MaskedImageCollator(CROPPED, patch_size=8, codebook_size=16)
    alone = batches(images, collator, CROPPED, 3)
    helped = batches(images, collator, CROPPED, 3, num_workers=2)
    for mine, theirs in zip(alone, helped, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def write_codes(folder, images, codes):
    writer = CodeShardWriter(folder, samples_per_shard=4)
    for record, row in zip(images, codes, strict=True):
        writer.write(SharedImage(record.image, [record]), record.image.read(), row)
    writer.close()
    CodesAbout(tokenizer="f00", num_codes=70_000, image_size=32).save(folder)
    return RecordList.of(read_webdataset(DataSourceConfig(path=str(folder)))).records


def test_stored_codes_come_back_in_the_batch(images, tmp_path):
    codes = np.random.default_rng(1).integers(70_000, size=(6, 16))
    records = write_codes(tmp_path / "shards", images, codes)
    collator = MaskedImageCollator(WHOLE, patch_size=8, codebook_size=None)
    batch = batches(records, collator, WHOLE, 1)[0]
    assert "codebook_image" not in batch
    assert batch["image_codes"].dtype == torch.int64
    assert np.array_equal(batch["image_codes"].numpy(), codes[batch["index"].numpy()])


def test_codes_for_another_grid_are_a_skipped_sample_each(images, tmp_path):
    records = write_codes(tmp_path / "shards", images, np.zeros((6, 9), dtype=np.int64))
    collator = MaskedImageCollator(WHOLE, patch_size=8, codebook_size=None)
    loader = build_loader(
        records,
        collator,
        ImageTransform(WHOLE, train=False),
        seed=0,
        local_batch_size=6,
        train=False,
    )
    built = loader.builder.build([(0, index) for index in range(6)])
    assert built.batch is None
    assert len(built.skipped) == 6
    assert "holds 9 codes, not 16" in built.skipped[0].message


@pytest.mark.parametrize(
    ("transform", "size", "message"),
    [
        (CROPPED, None, "stored codes"),
        (ImageTransformConfig(image_size=32), 16, "randaugment_geometric"),
        (ImageTransformConfig(image_size=30, randaugment_num_ops=0), 16, "image_size = 30"),
    ],
)
def test_transforms_that_would_part_the_views_are_errors(transform, size, message):
    with pytest.raises(ConfigError, match=message):
        MaskedImageCollator(transform, patch_size=8, codebook_size=size)


def test_images_alone(images):
    batch = batches(images, ImageCollator(), WHOLE, 1)[0]
    assert set(batch) == {"image", "index"}
    index = batch["index"].tolist()
    assert len(set(index)) == 4
    mean, std = (torch.tensor(v)[:, None, None] for v in (WHOLE.mean, WHOLE.std))
    pixels = np.asarray(Image.open(images[index[0]].image.path)).mean(axis=(0, 1)) / 255
    found = (batch["image"][0] * std + mean).mean(dim=(1, 2)).numpy()
    assert np.abs(found - pixels).max() < 0.02
