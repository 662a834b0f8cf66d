"""Images of every kind as pixels, and images and texts brought to one length."""

import numpy as np
import pytest
from PIL import Image

from triptych.core.errors import DataError
from triptych.data.images import decode_image
from triptych.serving.inputs import broadcast, read_image

RAMP = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "CMYK", "YCbCr", "HSV"])
def test_pil_images_are_read_as_pil_converts_them(mode):
    image = Image.fromarray(RAMP).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    found = read_image(image)
    assert found.shape == (4, 4, 3) and found.dtype == np.uint8
    np.testing.assert_allclose(found.astype(int), expected, atol=1)


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    assert read_image(image).tolist() == [[[255, 255, 255], [255, 255, 255]]]


def test_16_bit_grey_is_scaled():
    image = Image.fromarray(np.array([[0, 257, 65535]], dtype=np.uint16))
    assert read_image(image)[..., 0].tolist() == [[0, 1, 255]]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_rotated_photo_is_upright_from_path_and_from_pil(tmp_path, mode):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows of the file are columns of the scene
    path = tmp_path / "turned.jpg"
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).convert(mode).save(path, exif=exif)
    assert read_image(path).shape == (20, 10, 3)
    with Image.open(path) as image:
        assert np.array_equal(read_image(image), decode_image(path))


def test_grey_arrays_get_three_equal_channels():
    found = read_image(np.array([[1, 2]], dtype=np.uint8))
    assert found.tolist() == [[[1, 1, 1], [2, 2, 2]]]


def test_arrays_of_one_channel_are_grey():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert np.array_equal(read_image(grey[..., None]), read_image(grey))


def test_the_alpha_of_an_array_is_laid_on_white_as_that_of_a_file(tmp_path):
    array = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 100, 200, 51]]], dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    found = read_image(array)
    assert np.array_equal(found, read_image(tmp_path / "a.png"))
    # 51 is a fifth: 0.2 x (0, 100, 200) + 0.8 x 255
    assert found.tolist() == [[[255, 255, 255], [10, 20, 30], [204, 224, 244]]]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "array of float32: pass uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\): pass height x width x 3"),
        (np.zeros((3, 4, 5), np.uint8), r"shape \(3, 4, 5\): pass height x width x 3"),
        (np.zeros((2, 4, 4, 3), np.uint8), "several images as a list"),
        (np.zeros((0, 4, 3), np.uint8), "holds no pixel"),
        (b"bytes", "image 3 is bytes: pass a path"),
        (None, "image 3 is NoneType: pass a path"),
    ],
)
def test_what_is_no_image_is_named(image, message):
    with pytest.raises(DataError, match=message):
        read_image(image, "image 3")


@pytest.mark.parametrize(
    ("images", "texts", "expected"),
    [
        ("a", "x", (["a"], ["x"], True)),
        ("a", ["x", "y"], (["a", "a"], ["x", "y"], False)),
        (["a", "b"], "x", (["a", "b"], ["x", "x"], False)),
        (("a", "b"), ["x", "y"], (["a", "b"], ["x", "y"], False)),
        (["a"], "x", (["a"], ["x"], False)),
        ("a", [], ([], [], False)),
    ],
)
def test_broadcast(images, texts, expected):
    assert broadcast(images, texts, "text") == expected


def test_unequal_lists_are_refused():
    with pytest.raises(DataError, match="2 images and 1 phrases"):
        broadcast(["a", "b"], ["x"], "phrase")
