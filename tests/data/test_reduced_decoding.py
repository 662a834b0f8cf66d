"""Training decodes a JPEG no larger than its crop needs, and the same however it is read."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.core.config import from_dict, to_dict
from triptych.data.batches import ImageCache
from triptych.data.collate.image import (
    ImageCollator,
    MaskedImageCollator,
    MultiCropCollator,
    MultiCropConfig,
)
from triptych.data.images import decode_image
from triptych.data.manifest import DataSourceConfig, read_records
from triptych.data.records import ImageSource
from triptych.data.stream import build_loader
from triptych.data.transforms import pipeline
from triptych.data.transforms.pipeline import (
    CropPlan,
    ImageTransform,
    ImageTransformConfig,
    Region,
    crop,
    normalise_batch,
    reduced_region,
    resize,
)
from triptych.recipes.registry import build_recipe

CONFIG = ImageTransformConfig(image_size=24, randaugment_num_ops=0)
SIZES = [(400, 300), (301, 455), (90, 700), (200, 200), (60, 50), (23, 20)]


def photo(width, height, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 25 + 1, width // 25 + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height))


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    lines = []
    for number, (width, height) in enumerate(SIZES):
        kind = ("JPEG", "PNG")[number % 3 == 2]
        name = f"{number}.{kind.lower()}"
        (folder / name).write_bytes(encoded(photo(width, height, number), kind))
        lines.append(json.dumps({"image": name, "caption": f"photo {number}"}))
    (folder / "data.jsonl").write_text("\n".join(lines))
    return read_records(DataSourceConfig(path=str(folder / "data.jsonl"))).records


def images(records, steps=(0, 1, 2), config=CONFIG, **options):
    loader = build_loader(
        records,
        ImageCollator(),
        ImageTransform(config, train=True),
        seed=3,
        local_batch_size=4,
        train=True,
        start_step=steps[0],
        **options,
    )
    made = iter(loader)
    found = [next(made)["image"] for _ in steps]
    made.close()
    return found


def transformed(path, seed):
    """Return an image as training sees it, not mirrored, and its factor."""
    transform = ImageTransform(replace(CONFIG, flip_probability=0.0), train=True)
    rng = np.random.default_rng(seed)
    pixels, planned = ImageCache(0).planned(ImageSource(str(path)), transform.plan(rng))
    return transform.apply(pixels, rng, planned=planned), planned.factor


def test_the_crop_never_falls_below_the_input():
    rng = np.random.default_rng(0)
    factors = set()
    for _ in range(2000):
        width, height = rng.integers(20, 900, 2).tolist()
        plan = CropPlan(CONFIG, rng, 24)
        factor = plan.factor(width, height)
        assert plan.factor(width, height) == factor  # drawn once
        place = plan.place
        small = reduced_region(place, factor)
        factors.add(factor)
        assert small.left >= 0 and small.left + small.width <= -(-width // factor)
        assert small.top >= 0 and small.top + small.height <= -(-height // factor)
        if factor == 1:
            assert small == place and min(place.width, place.height) < 48
        else:
            assert min(small.width, small.height) >= 24
            assert min(place.width, place.height) < 2 * factor * 24 or factor == 8
        assert abs(small.left * factor - place.left) <= factor / 2
        right = place.left + place.width
        assert abs((small.left + small.width) * factor - right) <= factor / 2
    assert factors == {1, 2, 4, 8}


def test_other_views_keep_their_size():
    plan = CropPlan(replace(CONFIG, crop_scale=None), np.random.default_rng(0), 112)
    assert [plan.factor(side, 1000) for side in (111, 223, 224, 448, 896)] == [1, 1, 2, 4, 8]
    masked = MaskedImageCollator(
        replace(CONFIG, randaugment_geometric=False), patch_size=8, codebook_size=112
    )
    assert masked.region_side == 112
    uncropped = replace(CONFIG, crop_scale=None)
    config = MultiCropConfig(large_scale=(0.25, 1.0), small_scale=(0.05, 0.25), small_size=16)
    side = MultiCropCollator(uncropped, config).region_side
    rng = np.random.default_rng(0)
    for low, size in ((0.25, 24), (0.05, 16)):
        for _ in range(300):
            place = pipeline.draw_crop(side, side, (low, low), uncropped.crop_ratio, rng)
            assert min(place.width, place.height) >= size


@pytest.mark.parametrize("other", [{"num_workers": 1}, {"cache_mib": 8}, {"cache_mib": 1}])
def test_batches_depend_on_neither_workers_nor_what_is_kept(records, other):
    steps = range(12)  # several epochs: kept images come again, with other crops
    plain, found = images(records, steps), images(records, steps, **other)
    assert all(map(torch.equal, plain, found))
    assert torch.equal(images(records, [7], **other)[0], plain[7])  # as a resumed run reads


@pytest.mark.parametrize(
    ("width", "height", "most"),
    [(400, 304, 2), (304, 456, 2), (248, 248, 2), (301, 455, 6)],  # the last ends in part of a step
)
def test_a_reduced_crop_looks_like_the_same_crop_of_the_whole_image(tmp_path, width, height, most):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(photo(width, height), quality=90))
    whole = decode_image(path)
    for seed in range(10):
        image, factor = transformed(path, seed)
        assert factor > 1
        expected = resize(np.ascontiguousarray(crop(whole, image.place)), 24, 24)
        apart = np.abs(image.pixels.astype(int) - expected)
        assert apart.mean() < most < 30 < expected.std()  # grey levels


def test_the_reduced_crop_is_the_one_that_was_drawn(tmp_path):
    # a ramp from left to right and from top to bottom tells where a crop lies
    columns, rows = np.meshgrid(np.linspace(0, 255, 800), np.linspace(0, 255, 640))
    ramp = np.stack([columns, rows, np.full_like(rows, 128)], axis=2).astype(np.uint8)
    path = tmp_path / "ramp.jpg"
    path.write_bytes(encoded(Image.fromarray(ramp), quality=95))
    for seed in range(20):
        image, factor = transformed(path, seed)
        assert factor > 1 and (image.width, image.height) == (800, 640)
        drawn = CropPlan(CONFIG, np.random.default_rng(seed), 24).draw(800, 640)
        for edge in ("left", "top", "width", "height"):
            assert abs(getattr(drawn, edge) - getattr(image.place, edge)) <= factor
        expected = resize(np.ascontiguousarray(crop(ramp, image.place)), 24, 24)
        assert np.abs(image.pixels.astype(int) - expected).max() <= 5


def test_the_old_way_draws_the_same_crops(records):
    transform = ImageTransform(replace(CONFIG, decoding="whole"), train=True)
    assert transform.plan(np.random.default_rng(0)) is None
    assert ImageTransform(CONFIG, train=False).plan(np.random.default_rng(0)) is None
    pixels = np.asarray(photo(301, 455))
    first = transform.apply(pixels, np.random.default_rng(5))
    second = ImageTransform(CONFIG, train=True).apply(pixels, np.random.default_rng(5))
    assert first.place == second.place and first.flipped == second.flipped


def test_each_size_is_kept_until_the_room_is_full(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(photo(400, 320)))
    source, cache = ImageSource(str(path)), ImageCache(160 * 200 * 3 + 10)
    uncropped = replace(CONFIG, crop_scale=None)

    def read(side):
        pixels, planned = cache.planned(source, CropPlan(uncropped, np.random.default_rng(0), side))
        return pixels, planned.factor

    half, quarter = read(160), read(80)
    assert half[1] == 2 and half[0].shape == (160, 200, 3)
    assert quarter[1] == 4 and quarter[0].shape == (80, 100, 3)
    path.unlink()
    assert read(160)[0] is half[0]
    with pytest.raises(Exception, match=r"a\.jpg"):
        read(80)


def test_a_box_counts_every_pixel(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(photo(400, 300)))
    line = {"image": "a.jpg", "phrase": "a thing", "box": [10, 10, 200, 100]}
    (tmp_path / "data.jsonl").write_text(json.dumps(line))
    records = read_records(DataSourceConfig(path=str(tmp_path / "data.jsonl"))).records
    seen = []

    class Collator(ImageCollator):
        def sample(self, record, image, rng):
            seen.append(image)

    config = replace(CONFIG, crop_scale=None)
    transform = ImageTransform(config, train=True)
    loader = build_loader(records, Collator(), transform, seed=0, local_batch_size=1, train=True)
    next(iter(loader))
    assert seen[0].region.shape == (300, 400, 3) and seen[0].width == 400


def test_an_old_run_goes_on_as_it_began():
    plain = to_dict(build_recipe("mplug.pretrain", "smoke"))
    assert plain["image"]["decoding"] == "reduced"
    config_class = type(build_recipe("mplug.pretrain", "smoke"))
    assert from_dict(config_class, plain).image.decoding == "reduced"
    del plain["image"]["decoding"]
    assert from_dict(config_class, plain).image.decoding == "whole"
    assert from_dict(ImageTransformConfig, {"image_size": 64}).decoding == "reduced"
    assert from_dict(ImageTransformConfig, {"decoding": "whole"}).decoding == "whole"


def test_a_batch_is_normalised_into_its_own_memory(monkeypatch):
    pixels = [np.asarray(photo(9, 7, seed)) for seed in range(3)]
    mean, std = (0.1, 0.5, -0.125), (0.3, 0.25, 1.25)
    found = normalise_batch(pixels, mean, std)
    whole = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).double() / 255
    expected = (whole - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)
    monkeypatch.setattr(pipeline, "get_worker_info", lambda: object())
    shared = normalise_batch(pixels, mean, std)
    assert shared.is_shared() and shared.is_contiguous() and torch.equal(shared, found)


def test_pinned_batches_are_asked_for_from_torch(records, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    images(records, [0])
    assert not pinned
    loader = build_loader(
        records,
        ImageCollator(),
        ImageTransform(CONFIG, train=True),
        seed=3,
        local_batch_size=4,
        train=True,
    )
    batch = next(iter(replace(loader, pin_memory=True)))
    assert {id(tensor) for tensor in pinned} == {id(tensor) for tensor in batch.values()}


def test_regions_of_divided_images_are_rounded():
    assert reduced_region(Region(3, 4, 96, 100), 1) == Region(3, 4, 96, 100)
    assert reduced_region(Region(3, 4, 96, 100), 8) == Region(0, 1, 12, 12)
    assert reduced_region(Region(4, 11, 96, 100), 8) == Region(1, 1, 12, 13)
