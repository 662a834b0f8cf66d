"""Masks: read as they are saved, moved as their images are, named by the files beside them."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from PIL import Image

from triptych.core.errors import DataError
from triptych.data.collate.base import SampleProblem
from triptych.data.collate.segmentation import SegmentationCollator
from triptych.data.images import decode_image
from triptych.data.manifest import read_records
from triptych.data.masks import IGNORED, MaskClasses, decode_mask, find_classes
from triptych.data.records import ImageSource, Record
from triptych.data.skips import ImageProblem, SkipKind
from triptych.data.source import DataSourceConfig
from triptych.data.stream import build_loader
from triptych.data.transforms.pipeline import ImageTransform, ImageTransformConfig

RNG = np.random.default_rng(0)
HEADING = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"


def save(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if mode == "P":
        image = Image.frombytes("P", values.shape[::-1], values.tobytes())
        image.putpalette([v for k in range(256) for v in (k, 255 - k, 7)])
    image.save(path)
    return ImageSource(str(path))


def blocks(height, width):
    """An image of blocks of one colour, the mask of which is told by the colour."""
    classes = RNG.integers(0, 4, (height // 16, width // 16))
    classes = np.kron(classes, np.ones((16, 16), dtype=np.int64)).astype(np.uint8)
    pixels = np.stack([classes * 60, 255 - classes * 60, classes * 0], axis=-1)
    return classes, pixels


@pytest.mark.parametrize("mode", ["grey", "P", "16 bits", "1 bit"])
def test_values_are_read_as_they_are_saved(tmp_path, mode):
    values = RNG.integers(0, 2 if mode == "1 bit" else 200, (5, 7))
    dtype = {"16 bits": np.uint16, "1 bit": bool}.get(mode, np.uint8)
    source = save(tmp_path / "m.png", values.astype(dtype), mode)
    np.testing.assert_array_equal(decode_mask(source), values)


def test_what_is_no_mask_is_named(tmp_path):
    colours = save(tmp_path / "c.png", np.zeros((4, 4, 3), dtype=np.uint8))
    with pytest.raises(ImageProblem, match="of mode RGB: save the number"):
        decode_mask(colours)
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(ImageProblem, match="cannot be decoded"):
        decode_mask(ImageSource(str(tmp_path / "b.png")))
    with pytest.raises(ImageProblem, match="no such file"):
        decode_mask(ImageSource(str(tmp_path / "none.png")))


def test_numbers_of_values_and_back():
    source = ImageSource("m.png")
    values = np.array([[0, 1, 2], [255, 2, 1]])
    own = MaskClasses(("a", "b", "c"))
    np.testing.assert_array_equal(own.numbers(values, source), values)
    shifted = MaskClasses(("a", "b"), zero_is_ignored=True)
    expected = [[IGNORED, 0, 1], [IGNORED, 1, 0]]
    np.testing.assert_array_equal(shifted.numbers(values, source), expected)
    back = shifted.values(np.array([[0, 1]], dtype=np.uint8))
    np.testing.assert_array_equal(back, [[1, 2]])
    assert back.dtype == np.uint8
    for classes in (MaskClasses(("a", "b")), MaskClasses(("a",), zero_is_ignored=True)):
        with pytest.raises(ImageProblem, match="value 2 is of no class: there are"):
            classes.numbers(values, source)


@pytest.mark.parametrize(
    "config",
    [
        ImageTransformConfig(image_size=40, crop_scale=None, flip_probability=1.0),
        ImageTransformConfig(image_size=40, crop_scale=(0.3, 0.6), flip_probability=0.0),
        ImageTransformConfig(image_size=96, crop_scale=(0.2, 1.0), flip_probability=0.5),
        ImageTransformConfig(image_size=17, crop_scale=(0.5, 1.0), flip_probability=0.5),
    ],
)
def test_a_mask_moves_with_its_image(config):
    """The colours of the moved image tell the classes again, but at edges that blur."""
    config = replace(config, randaugment_num_ops=0)
    transform = ImageTransform(config, train=True)
    for seed in range(20):
        classes, pixels = blocks(64, 48)
        moved = transform.apply(pixels, np.random.default_rng(seed))
        found, size = moved.mask(classes), config.image_size
        assert found.shape == (size, size)
        told = np.minimum(np.rint(moved.pixels[..., 0] / 60), 3)
        inside = np.ones((size, size), dtype=bool)  # two pixels or more from another class
        for axis, step in product((0, 1), (-2, -1, 1, 2)):
            inside &= np.roll(found, step, axis) == found
        inside[:2], inside[-2:], inside[:, :2], inside[:, -2:] = False, False, False, False
        assert inside.any()
        assert (found == told)[inside].mean() > 0.995, seed  # a kernel may overshoot at a corner


def test_a_plain_transform_keeps_every_pixel_of_the_mask():
    classes, pixels = blocks(32, 32)
    plain = ImageTransform(ImageTransformConfig(image_size=32), train=False).apply(pixels)
    np.testing.assert_array_equal(plain.mask(classes), classes)
    large = ImageTransform(ImageTransformConfig(image_size=64), train=False).apply(pixels)
    np.testing.assert_array_equal(large.mask(classes), np.kron(classes, np.ones((2, 2))))


def test_only_shears_and_rotations_lose_a_mask():
    assert not ImageTransformConfig().keeps_masks
    assert ImageTransformConfig(randaugment_geometric=False).keeps_masks
    assert ImageTransformConfig(randaugment_num_ops=0).keeps_masks


def test_batches_hold_masks_in_training_alone(tmp_path):
    records = []
    for number in range(3):
        classes, pixels = blocks(16, 32)
        classes[0, 0] = IGNORED
        image = save(tmp_path / f"{number}.png", pixels)
        mask = save(tmp_path / f"{number}_m.png", classes)
        records.append(Record(record_id=str(number), image=image, mask=mask))
    records.append(replace(records[0], record_id="3", mask=records[0].image))
    records.append(replace(records[0], record_id="4", mask=None))
    small = save(tmp_path / "small.png", np.zeros((8, 8), dtype=np.uint8))
    records.append(replace(records[0], record_id="5", mask=small))
    config = ImageTransformConfig(
        image_size=16, crop_scale=None, flip_probability=0.0, randaugment_num_ops=0
    )
    classes = MaskClasses(("a", "b", "c", "d"))

    def batch_of(collator, chosen, train):
        transform = ImageTransform(config, train=train)
        loader = build_loader(
            chosen, collator, transform, seed=0, local_batch_size=len(chosen), train=train
        )
        return next(iter(loader))

    batch = batch_of(SegmentationCollator(classes), records[:3], True)
    assert batch["mask"].shape == (3, 16, 16)
    assert batch["image_size_px"].tolist() == [[32, 16]] * 3
    order = batch["index"].tolist()
    truth = decode_mask(records[order[0]].mask)
    columns = [int((c + 0.5) * 32 / 16) for c in range(16)]
    np.testing.assert_array_equal(batch["mask"][0], truth[:, columns])
    assert set(batch_of(SegmentationCollator(classes, train=False), records, False)) == {
        "image", "image_size_px", "index",
    }  # fmt: skip
    transform, collator = ImageTransform(config, train=False), SegmentationCollator(classes)
    for record, problem, message in (
        (records[3], ImageProblem, "mode RGB"),
        (records[4], SampleProblem, "record 4: has no mask"),
        (records[5], ImageProblem, "the mask is 8 x 8 pixels, its image 32 x 16"),
    ):
        with pytest.raises(problem, match=message):
            collator.sample(record, transform.apply(decode_image(record.image)), RNG)


def ade20k(root, names="wall\n", number=2):
    for split in ("training", "validation"):
        for index in range(number):
            name = f"ADE_{split[:5]}_{index:08d}"
            save(root / "images" / split / f"{name}.jpg", np.zeros((8, 8, 3), dtype=np.uint8))
            values = RNG.integers(0, 3, (8, 8)).astype(np.uint8)
            save(root / "annotations" / split / f"{name}.png", values)
    rows = [f"{i + 1}\t0.1\t1\t1\t0\t{name}\n" for i, name in enumerate(names.split("\n")[:-1])]
    (root / "objectInfo150.txt").write_text(HEADING + "".join(rows))
    return root


def test_ade20k_is_read_in_its_own_layout(tmp_path):
    root = ade20k(tmp_path / "ADEChallengeData2016", "wall\nscreen door, screen\nscreen, crt\n")
    found = read_records(DataSourceConfig(path=str(root)))
    assert found.parts == ("training", "validation")
    assert len(found.records) == 4
    records = read_records(DataSourceConfig(path=str(root), split="validation")).records
    assert [r.record_id for r in records] == [
        f"images/validation/ADE_valid_{index:08d}.jpg" for index in range(2)
    ]
    classes = find_classes(records)
    assert classes == MaskClasses(("wall", "screen door", "screen"), zero_is_ignored=True)
    numbers = classes.numbers(decode_mask(records[0].mask), records[0].mask)
    assert (numbers == IGNORED).sum() == (decode_mask(records[0].mask) == 0).sum() > 0


def test_an_incomplete_ade20k_is_named(tmp_path):
    root = ade20k(tmp_path / "a")
    gone = root / "annotations" / "training" / "ADE_train_00000000.png"
    gone.unlink()
    found = read_records(DataSourceConfig(path=str(root), split="training"))
    assert [(s.kind, s.where) for s in found.skipped] == [(SkipKind.MISSING_FILE, str(gone))]
    with pytest.raises(DataError, match="there is no split 'train'"):
        read_records(DataSourceConfig(path=str(root), split="train"))
    (root / "objectInfo150.txt").write_text("a text\n")
    with pytest.raises(DataError, match="expected a line for each class"):
        find_classes(found.records)
    (root / "objectInfo150.txt").unlink()
    with pytest.raises(DataError, match=r"objectInfo150.txt is missing"):
        read_records(DataSourceConfig(path=str(root)))
    with pytest.raises(DataError, match="images/training and"):
        read_records(DataSourceConfig(path=str(tmp_path), reader="ade20k"))


def test_names_come_from_a_file_or_from_the_values(tmp_path):
    mask = save(tmp_path / "masks" / "train" / "0.png", np.array([[0, 4, 255]], dtype=np.uint8))
    records = [Record(record_id="0", image=mask, mask=mask)]
    assert find_classes(records) == MaskClasses(("0", "1", "2", "3", "4"))
    names = tmp_path / "masks" / "classes.txt"
    names.write_text("ground\ncat\n")
    assert find_classes(records) == MaskClasses(("ground", "cat"))
    for text, message in (("a\na\n", "two classes are called 'a'"), ("a\n\nb\n", "class 1 has no")):
        names.write_text(text)
        with pytest.raises(DataError, match=message):
            find_classes(records)
    names.unlink()
    empty = save(tmp_path / "e.png", np.zeros((2, 2), dtype=np.uint8))
    with pytest.raises(DataError, match="the masks have 1 classes"):
        find_classes([Record(record_id="0", image=empty, mask=empty)])
    with pytest.raises(DataError, match="no record has a mask"):
        find_classes([Record(record_id="0", image=empty)])


def test_a_manifest_names_masks(tmp_path):
    save(tmp_path / "a.png", np.zeros((2, 2, 3), dtype=np.uint8))
    lines = [{"image": "a.png", "mask": "m/a.png"}, {"mask": "m/b.png"}, {"image": "a.png"}]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_records(DataSourceConfig(path=str(path)))
    assert found.records[0].mask == ImageSource(str(tmp_path / "m" / "a.png"))
    assert len(found.records) == 1
    assert "mask needs 'image' beside it" in found.skipped[0].message
