import math

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from triptych.data.transforms import randaugment
from triptych.data.transforms.randaugment import ALL_OPS, PHOTOMETRIC_OPS, rand_augment


def noise(low=0, high=256, shape=(24, 32, 3)):
    return np.random.default_rng(0).integers(low, high, shape, dtype=np.uint8)


def smooth(height=40, width=48):
    """An image with gradients of at most 4 grey levels a pixel."""
    y, x = np.mgrid[:height, :width]
    channels = [40 + 3 * x, 220 - 4 * y, 128 + 40 * np.sin(x / 12) + 40 * np.cos(y / 12)]
    return np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)


def bilinear(pixels, backward):
    """Sample `pixels` at backward(x, y) for each new pixel; 128 outside."""
    height, width, _ = pixels.shape
    padded = np.full((height + 4, width + 4, 3), 128.0)
    padded[2:-2, 2:-2] = pixels
    found = np.full(pixels.shape, 128.0)
    for row in range(height):
        for column in range(width):
            x, y = backward(column, row)
            if not (-1 < x < width and -1 < y < height):
                continue
            left, top = math.floor(x), math.floor(y)
            u, v = x - left, y - top
            a = padded[top + 2 : top + 4, left + 2 : left + 4]
            weights = np.array([[(1 - u) * (1 - v), u * (1 - v)], [(1 - u) * v, u * v]])
            found[row, column] = (a * weights[..., None]).sum(axis=(0, 1))
    return found


@pytest.mark.parametrize("pixels", [noise(), noise(60, 130), smooth(), noise(7, 8)])
def test_auto_contrast_equals_pillow(pixels):
    expected = np.asarray(ImageOps.autocontrast(Image.fromarray(pixels)))
    found = randaugment.auto_contrast(pixels, 7, 1)
    assert np.abs(found.astype(int) - expected).max() <= 1  # float rounding at whole numbers
    assert (found != expected).mean() < 0.01


@pytest.mark.parametrize("pixels", [noise(), noise(60, 130), smooth(), noise(7, 8), noise(9, 11)])
def test_equalize_equals_pillow(pixels):
    expected = np.asarray(ImageOps.equalize(Image.fromarray(pixels)))
    np.testing.assert_array_equal(randaugment.equalize(pixels, 7, 1), expected)


@pytest.mark.parametrize(("magnitude", "factor"), [(7, 1.36), (0, 0.1), (10, 1.9), (5, 1.0)])
def test_brightness_equals_pillow(magnitude, factor):
    pixels = noise()
    expected = np.asarray(ImageEnhance.Brightness(Image.fromarray(pixels)).enhance(factor))
    found = randaugment.brightness(pixels, magnitude, 1)
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("magnitude", "factor"), [(7, 1.36), (0, 0.1), (10, 1.9), (5, 1.0)])
def test_sharpness_equals_pillow(magnitude, factor):
    pixels = noise()
    expected = np.asarray(ImageEnhance.Sharpness(Image.fromarray(pixels)).enhance(factor))
    found = randaugment.sharpness(pixels, magnitude, 1)
    # the smoothed image is rounded to whole levels in both, which the factor then stretches
    assert np.abs(found.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("sign", [1, -1])
def test_translations_shift_by_seven_pixels(sign):
    pixels = noise()
    across, down = np.full_like(pixels, 128), np.full_like(pixels, 128)
    if sign == 1:
        across[:, 7:], down[7:] = pixels[:, :-7], pixels[:-7]
    else:
        across[:, :-7], down[:-7] = pixels[:, 7:], pixels[7:]
    np.testing.assert_array_equal(randaugment.translate_x(pixels, 7, sign), across)
    np.testing.assert_array_equal(randaugment.translate_y(pixels, 7, sign), down)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("op", "backward"),
    [
        (randaugment.shear_x, lambda x, y, s: (x - s * 0.21 * y, y)),
        (randaugment.shear_y, lambda x, y, s: (x, y - s * 0.21 * x)),
    ],
)
def test_shears_equal_a_bilinear_loop(op, backward, sign):
    pixels = smooth()
    expected = bilinear(pixels, lambda x, y: backward(x, y, sign))
    found = op(pixels, 7, sign)
    # OpenCV places samples to 1/32 pixel: 4/32 levels inside, 120/32 at the grey border
    assert np.abs(found - expected).max() <= 4


@pytest.mark.parametrize("sign", [1, -1])
def test_rotation_equals_a_bilinear_loop(sign):
    pixels = smooth()
    angle, x0, y0 = math.radians(21 * sign), 23.5, 19.5

    def backward(x, y):
        # The image turns counter-clockwise as one sees it (y points down).
        dx, dy = x - x0, y - y0
        return (
            x0 + math.cos(angle) * dx - math.sin(angle) * dy,
            y0 + math.sin(angle) * dx + math.cos(angle) * dy,
        )

    found = randaugment.rotate(pixels, 7, sign)
    assert np.abs(found - bilinear(pixels, backward)).max() <= 6  # both axes at a corner
    pillow = Image.fromarray(pixels).rotate(
        21 * sign, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)
    )
    assert np.abs(found.astype(int) - np.asarray(pillow))[12:-12, 14:-14].max() <= 2


def test_uncovered_pixels_are_grey():
    white = np.full((40, 40, 3), 255, dtype=np.uint8)
    assert (randaugment.rotate(white, 10, 1)[0, 0] == 128).all()
    assert (randaugment.shear_x(white, 10, 1)[-1, 0] == 128).all()
    assert (randaugment.shear_y(white, 10, -1)[-1, -1] == 128).all()


@pytest.mark.parametrize("op", ALL_OPS)
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 50, 3), (33, 1, 3)])
def test_ops_keep_shape_and_leave_their_input_alone(op, shape):
    pixels = noise(shape=shape)
    before = pixels.copy()
    found = op(pixels, 7, -1)
    assert found.shape == shape and found.dtype == np.uint8
    np.testing.assert_array_equal(pixels, before)


def test_ops_are_drawn_uniformly_and_applied_half_of_the_time():
    applied = []
    signs = []

    def recorder(number):
        def op(pixels, magnitude, sign):
            assert magnitude == 7
            applied.append(number)
            signs.append(sign)
            return pixels

        return op

    rng = np.random.default_rng(0)
    ops = [recorder(i) for i in range(10)]
    for _ in range(5000):
        rand_augment(noise(shape=(2, 2, 3)), rng, num_ops=2, magnitude=7, ops=ops)
    # 10,000 draws: standard deviation 0.005 for the share applied, 0.003 for each op
    assert len(applied) / 10000 == pytest.approx(0.5, abs=0.02)
    counts = np.bincount(applied, minlength=10) / len(applied)
    np.testing.assert_allclose(counts, 0.1, atol=0.016)
    assert np.mean(signs) == pytest.approx(0.0, abs=0.06)


def test_photometric_ops_move_nothing():
    # A dot stays where it is: its neighbourhood changes, its place does not.
    pixels = np.full((31, 31, 3), 90, dtype=np.uint8)
    pixels[20, 7] = 200
    for op in PHOTOMETRIC_OPS:
        found = op(pixels, 7, 1)[..., 0].astype(int)
        assert np.unravel_index(found.argmax(), found.shape) == (20, 7)
    assert set(ALL_OPS) > set(PHOTOMETRIC_OPS) and len(set(ALL_OPS)) == 10


def test_results_do_not_depend_on_the_number_of_threads():
    pixels = noise(shape=(300, 300, 3))
    threads = cv2.getNumThreads()
    found = []
    for num_threads in (1, 2):
        cv2.setNumThreads(num_threads)
        found.append([op(pixels, 7, 1) for op in ALL_OPS])
    cv2.setNumThreads(threads)
    np.testing.assert_array_equal(found[0], found[1])
