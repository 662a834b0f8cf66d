import base64
import io

import numpy as np
import pytest
from PIL import Image

from triptych.core.errors import DataError
from triptych.report.html import encode_image, load_image


def decode(uri):
    kind, _, data = uri.partition(",")
    return kind, np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_small_image_keeps_every_pixel():
    kind, pixels = decode(encode_image(noise(64, 48)))
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(pixels, noise(64, 48))


def test_a_large_image_shrinks_and_keeps_its_shape():
    flat = np.full((400, 800, 3), (200, 30, 90), dtype=np.uint8)
    kind, pixels = decode(encode_image(flat, max_side_px=100))
    assert kind == "data:image/jpeg;base64"
    assert pixels.shape == (50, 100, 3)
    assert np.abs(pixels.astype(int) - (200, 30, 90)).max() <= 3


def test_a_thumbnail_need_not_be_exact():
    kind, pixels = decode(encode_image(np.full((32, 32, 3), 77, np.uint8), exact=False))
    assert kind == "data:image/jpeg;base64"
    assert np.abs(pixels.astype(int) - 77).max() <= 2


def test_a_path_is_read_as_any_image_of_the_data(tmp_path):
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), noise(8, 8))


@pytest.mark.parametrize("shape, dtype", [((8, 8), np.uint8), ((8, 8, 3), np.float32)])
def test_another_kind_of_array_is_an_error(shape, dtype):
    with pytest.raises(DataError, match="uint8"):
        load_image(np.zeros(shape, dtype))
