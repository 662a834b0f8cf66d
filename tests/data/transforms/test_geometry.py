import math

import numpy as np
import pytest
from PIL import Image

from triptych.data.transforms.pipeline import (
    Region,
    crop,
    draw_crop,
    mirror,
    mirror_box,
    resize,
    resize_fast,
)

RATIO = (3 / 4, 4 / 3)


def noise(height, width, low=0, high=256):
    return np.random.default_rng(0).integers(low, high, (height, width, 3), dtype=np.uint8)


def cubic_weight(x: float, a: float) -> float:
    """Keys' cubic convolution kernel."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def cubic_matrix(old: int, new: int, a: float) -> np.ndarray:
    """(new, old) weights of cubic enlargement, the border value repeated."""
    weights = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for k in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weights[i, min(max(k, 0), old - 1)] += cubic_weight(centre - k, a)
    return weights


@pytest.mark.parametrize("shrink", [resize, resize_fast])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (96, 20)])
def test_a_fine_checkerboard_shrinks_to_grey(shrink, height, width):
    # Sampling without antialiasing would keep black and white pixels or stripes.
    board = np.indices((128, 128)).sum(axis=0) % 2 * 255
    board = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    found = shrink(board, width, height)
    assert found.shape == (height, width, 3)
    inner = found[2:-2, 2:-2]
    # Bicubic with a support of 1.33 and 2 pixels leaves a ripple, area averaging at 0.75 as well.
    assert np.abs(inner.astype(int) - 127.5).max() < 64
    assert inner.mean() == pytest.approx(127.5, abs=1.5)


@pytest.mark.parametrize("shrink", [resize, resize_fast])
def test_stripes_shrunk_along_one_axis_turn_grey(shrink):
    stripes = np.zeros((16, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    found = shrink(stripes, 16, 32)[:, 2:-2]  # columns shrink by 4, rows grow by 2
    assert np.abs(found.astype(int) - 127.5).max() <= 1.5


@pytest.mark.parametrize(("width", "height"), [(256, 256), (100, 30), (17, 29), (60, 7), (3, 1)])
def test_fast_shrinking_is_pillows_within_two_grey_levels(width, height):
    pixels = noise(300, 260)
    whole = resize_fast(pixels, width, height)
    assert np.abs(whole.astype(int) - resize(pixels, width, height)).max() <= 2
    assert whole.flags.c_contiguous and whole.flags.writeable
    part = pixels[20:280, 3:]  # a crop is a view
    assert np.array_equal(resize_fast(part, width, height), resize_fast(part.copy(), width, height))


def test_means_of_areas_are_those_of_whole_blocks():
    pixels = noise(12, 8)
    blocks = pixels.reshape(3, 4, 4, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(resize_fast(pixels, 4, 3, "area") - blocks).max() <= 0.5 + 1e-9


def test_fast_enlarging_is_bicubic():
    pixels = noise(5, 7)
    down, across = cubic_matrix(5, 11, -0.75), cubic_matrix(7, 10, -0.75)
    expected = np.einsum("ih,hwc,jw->ijc", down, pixels.astype(float), across)
    found = resize_fast(pixels, 10, 11)
    # fixed-point weights of 11 bits: one grey level
    assert np.abs(found - expected.clip(0, 255)).max() <= 1.5


def test_exact_enlarging_is_bicubic():
    # Pillow's kernel has a = -0.5 and drops taps beyond the border instead of repeating it; it
    # rounds and cuts to 0..255 between the axes, so the values stay away from both ends.
    pixels = noise(20, 20, 70, 180)
    weights = cubic_matrix(20, 40, -0.5)
    expected = np.einsum("ih,hwc,jw->ijc", weights, pixels.astype(float), weights).clip(0, 255)
    found = resize(pixels, 40, 40)
    assert np.abs(found - expected)[4:-4, 4:-4].max() <= 1.5


@pytest.mark.parametrize("function", [resize, resize_fast])
def test_an_image_of_the_right_size_is_untouched(function):
    pixels = noise(9, 13)
    np.testing.assert_array_equal(function(pixels, 13, 9), pixels)


@pytest.mark.parametrize(("width", "height"), [(100, 60), (37, 90)])
def test_crops_have_the_stated_area_and_aspect(width, height):
    rng = np.random.default_rng(1)
    regions = [draw_crop(width, height, (0.3, 0.5), RATIO, rng) for _ in range(500)]
    for region in regions:
        assert 0 <= region.left <= width - region.width
        assert 0 <= region.top <= height - region.height
    # rounding a side of about 40 pixels moves area and aspect by about 3 %
    area = np.array([r.width * r.height / (width * height) for r in regions])
    aspect = np.array([r.width / r.height for r in regions])
    assert area.min() > 0.28 and area.max() < 0.53
    assert aspect.min() > 0.72 and aspect.max() < 1.39


def test_crop_area_log_aspect_and_place_are_uniform():
    rng = np.random.default_rng(2)
    regions = [draw_crop(4000, 4000, (0.01, 0.09), RATIO, rng) for _ in range(4000)]
    area = np.array([r.width * r.height / 16e6 for r in regions])
    log_aspect = np.log([r.width / r.height for r in regions])
    place = np.array([r.left / (4000 - r.width) for r in regions])
    # mean and standard deviation of a uniform distribution on [a, b]: (a+b)/2, (b-a)/sqrt(12)
    for values, low, high in [(area, 0.01, 0.09), (log_aspect, *np.log(RATIO)), (place, 0, 1)]:
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
        assert values.std() == pytest.approx((high - low) / math.sqrt(12), rel=0.04)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (100, 10, Region(43, 0, 13, 10)),  # 10 * 4/3 = 13 wide, (100 - 13) // 2 from the left
        (10, 100, Region(0, 43, 10, 13)),  # 10 / (3/4) = 13 high
        (1, 1, Region(0, 0, 1, 1)),
    ],
)
def test_impossible_crops_fall_back_to_the_centre(width, height, expected):
    # The whole area at an aspect of 3/4 to 4/3 does not fit these shapes.
    assert draw_crop(width, height, (1.0, 1.0), RATIO, np.random.default_rng(0)) == expected


def test_crop_and_mirror():
    pixels = noise(6, 8)
    found = crop(pixels, Region(2, 1, 3, 4))
    np.testing.assert_array_equal(found, np.asarray(Image.fromarray(pixels).crop((2, 1, 5, 5))))
    np.testing.assert_array_equal(mirror(pixels), pixels[:, ::-1])


def test_mirrored_box_covers_the_mirrored_pixels():
    pixels = np.zeros((6, 10, 3), dtype=np.uint8)
    pixels[1:4, 2:5] = 255
    x, y, w, h = mirror_box((2, 1, 3, 3), 10)
    rows, columns = np.nonzero(mirror(pixels)[..., 0])
    assert (x, y, x + w, y + h) == (
        columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    )  # fmt: skip
