"""Decoding: every kind of image comes out as the RGB that was meant, or as a problem by kind."""

import io
import struct
import threading
import warnings
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from triptych.data.images import ImageProblem, decode_image, read_jpeg_header
from triptych.data.records import ImageSource
from triptych.data.skips import SkipKind


def encoded(image, format_name, **options):
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def photo(height=48, width=64, seed=0):
    """A smooth colour image, so that JPEG keeps it within a few levels."""
    coarse = np.random.default_rng(seed).integers(30, 226, (3, 4, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def corners():
    """2 x 3 squares of 16 px in six colours: which way is up is plain even after JPEG."""
    colours = [[(255, 0, 0), (0, 255, 0), (0, 0, 255)], [(255, 255, 0), (0, 0, 0), (255,) * 3]]
    return np.repeat(np.repeat(np.array(colours, dtype=np.uint8), 16, 0), 16, 1)


def problem_of(data):
    with pytest.raises(ImageProblem) as caught:
        decode_image(data)
    return caught.value.kind


@pytest.mark.parametrize("format_name", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_are_exact(format_name):
    array = photo()
    decoded = decode_image(encoded(Image.fromarray(array), format_name))
    np.testing.assert_array_equal(decoded, array)
    assert decoded.flags.c_contiguous and decoded.flags.writeable


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 64), (48, 65)])
@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2, "quality": 60}],
)
def test_plain_jpeg_equals_pillow_bit_for_bit(size, options):
    data = encoded(Image.fromarray(photo(*size)), "JPEG", **options)
    assert read_jpeg_header(data).is_plain
    np.testing.assert_array_equal(decode_image(data), np.array(Image.open(io.BytesIO(data))))


def test_webp_is_close():
    array = photo()
    data = encoded(Image.fromarray(array), "WEBP", lossless=True)
    np.testing.assert_array_equal(decode_image(data), array)


@pytest.mark.parametrize("format_name", ["PNG", "JPEG"])
def test_grey_fills_three_channels(format_name):
    grey = np.full((16, 24), 77, dtype=np.uint8)
    decoded = decode_image(encoded(Image.fromarray(grey), format_name))
    np.testing.assert_array_equal(decoded, np.full((16, 24, 3), 77))


def test_one_bit_is_black_and_white():
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1")
    decoded = decode_image(encoded(bits, "PNG"))
    assert decoded[:, :, 0].tolist() == [[0, 255], [255, 0]]


def test_alpha_lies_on_white():
    # 128 / 255 of red over white: 255 stays, 0 becomes 255 * 127 / 255 = 127
    rgba = np.array([[(255, 0, 0, 255), (0, 0, 0, 0), (255, 0, 0, 128)]], dtype=np.uint8)
    decoded = decode_image(encoded(Image.fromarray(rgba), "PNG"))
    assert decoded.tolist() == [[[255, 0, 0], [255, 255, 255], [255, 127, 127]]]


def test_grey_with_alpha_lies_on_white():
    la = Image.merge("LA", [Image.new("L", (1, 1), 10), Image.new("L", (1, 1), 0)])
    assert decode_image(encoded(la, "PNG")).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_palette_with_transparency_lies_on_white(transparency):
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("L").convert("P")
    image.putpalette([200, 10, 20, 0, 0, 0])
    image.putdata([0, 1])
    data = encoded(image, "PNG", transparency=transparency)
    assert decode_image(data).tolist() == [[[200, 10, 20], [255, 255, 255]]]


def test_a_transparent_colour_key_lies_on_white():
    image = Image.fromarray(np.array([[(1, 2, 3), (9, 9, 9)]], dtype=np.uint8))
    data = encoded(image, "PNG", transparency=(1, 2, 3))
    assert decode_image(data).tolist() == [[[255, 255, 255], [9, 9, 9]]]


def test_gif_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(data)[0, 0], [255, 0, 0])


def test_cmyk_jpeg_is_not_inverted():
    cmyk = np.zeros((16, 16, 4), dtype=np.uint8)
    cmyk[..., 1:3] = 255  # magenta and yellow ink give red
    data = encoded(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data  # Photoshop's inverted kind
    assert np.abs(decode_image(data)[8, 8].astype(int) - [255, 0, 0]).max() <= 3


def test_rgb_jpeg_without_ycbcr():
    array = np.full((16, 16, 3), (200, 30, 90), dtype=np.uint8)
    data = encoded(Image.fromarray(array), "JPEG", keep_rgb=True, quality=95)
    assert np.abs(decode_image(data).astype(int) - array).max() <= 2


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)  # 257 * k is k in 8 bits
    for format_name in ("PNG", "TIFF"):
        decoded = decode_image(encoded(Image.fromarray(values), format_name))
        assert decoded[0, :, 1].tolist() == [0, 1, 128, 255]


def test_16_bit_colour_keeps_its_high_byte():
    values = np.array([[[0x1234, 0x80FF, 0xFFFF]]], dtype=np.uint16)  # RGB
    _, data = cv2.imencode(".png", values[..., ::-1])
    decoded = decode_image(data.tobytes())
    assert np.abs(decoded[0, 0].astype(int) - [0x12, 0x80, 0xFF]).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]),
        ([0, 25700, 65535], [0, 100, 255]),
        ([-100000, 0, 100000], [0, 128, 255]),
    ],
)
def test_32_bit_integers(values, expected):
    image = Image.fromarray(np.array([values], dtype=np.int32))
    assert decode_image(encoded(image, "TIFF"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.2, 1.0], [0, 51, 255]),
        ([0.0, 51.0, 255.0], [0, 51, 255]),
        ([-1.0, -0.6, 1.0], [0, 51, 255]),
        ([0.0, float("nan"), 1.0], [0, 0, 255]),
    ],
)
def test_32_bit_floats(values, expected):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert decode_image(encoded(image, "TIFF"))[0, :, 0].tolist() == expected


def test_lab_comes_out_in_its_colour():
    lab = Image.new("LAB", (2, 2), (255, 128, 128))  # L = 100: white
    assert decode_image(encoded(lab, "TIFF")).min() >= 250


UPRIGHT = {  # EXIF 2.3: how the stored rows and columns must be turned, in NumPy's words
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation, format_name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "exif": exif.tobytes()}
    decoded = decode_image(encoded(Image.fromarray(corners()), format_name, **options))
    expected = UPRIGHT[orientation](corners())
    assert decoded.shape == expected.shape
    middle = slice(8, None, 16)
    assert np.abs(decoded[middle, middle].astype(int) - expected[middle, middle]).max() < 40


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0junk"])
def test_a_broken_exif_block_costs_nothing(exif):
    data = encoded(Image.fromarray(corners()), "JPEG", exif=exif)
    assert decode_image(data).shape == (32, 48, 3)


def test_a_path_a_source_and_bytes_are_the_same(tmp_path):
    data = encoded(Image.fromarray(photo()), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (data, path, str(path), ImageSource(str(path)), ImageSource(str(path), 0, None)):
        np.testing.assert_array_equal(decode_image(source), photo())


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.3, 0.6, 0.9, 0.99])
def test_a_cut_jpeg_is_truncated(progressive, share):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG", progressive=progressive)
    assert problem_of(data[: max(4, int(len(data) * share))]) is SkipKind.TRUNCATED


@pytest.mark.parametrize("missing", [1, 2, 3, 10])
def test_a_jpeg_that_lacks_its_last_bytes_is_truncated(missing):
    data = encoded(Image.fromarray(photo()), "JPEG")
    assert problem_of(data[:-missing]) is SkipKind.TRUNCATED


def test_a_cut_jpeg_with_a_whole_thumbnail_is_truncated():
    thumbnail = encoded(Image.fromarray(photo(16, 16)), "JPEG")
    data = encoded(Image.fromarray(photo(96, 96)), "JPEG")
    segment = b"\xff\xe2" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    data = data[:2] + segment + data[2:]
    assert decode_image(data).shape == (96, 96, 3)
    assert problem_of(data[:-200]) is SkipKind.TRUNCATED


def test_a_cut_jpeg_padded_with_zeros_is_truncated():
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG")
    half = len(data) // 2
    assert problem_of(data[:half] + bytes(len(data) - half)) is SkipKind.TRUNCATED


def test_bytes_after_the_end_of_a_jpeg_are_accepted():
    data = encoded(Image.fromarray(photo()), "JPEG")
    np.testing.assert_array_equal(decode_image(data + b"camera notes"), decode_image(data))


@pytest.mark.parametrize("format_name", ["PNG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_other_formats_cut_short_are_truncated(format_name, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), format_name)
    assert problem_of(data[: int(len(data) * share)]) is SkipKind.TRUNCATED


def test_an_empty_file_is_truncated():
    assert problem_of(b"") is SkipKind.TRUNCATED


@pytest.mark.parametrize("data", [b"<html>404</html>", b"\0" * 100, b"\xff\xd8", b"not an image"])
def test_other_bytes_are_not_an_image(data):
    assert problem_of(data) is SkipKind.NOT_AN_IMAGE


def test_a_missing_file_says_its_path(tmp_path):
    with pytest.raises(ImageProblem, match=r"absent\.jpg.*no such file") as caught:
        decode_image(tmp_path / "absent.jpg")
    assert caught.value.kind is SkipKind.MISSING_FILE


def png_header(width, height):
    """A PNG whose header claims a size, with next to no data."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "size", [(10_000, 10_000), (60_000, 60_000)]
)  # over Pillow's limit, far over
def test_a_png_bomb_is_refused_from_its_header(size):
    assert problem_of(png_header(*size)) is SkipKind.DECOMPRESSION_BOMB


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000)])
def test_a_jpeg_bomb_is_refused_from_its_header(size):
    data = bytearray(encoded(Image.fromarray(photo()), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", *size)
    assert problem_of(bytes(data)) is SkipKind.DECOMPRESSION_BOMB


def test_no_warning_leaks_and_filters_are_restored():
    image = Image.new("P", (4, 4))
    image.putpalette([1, 2, 3] * 256)
    data = encoded(image, "PNG", transparency=bytes(256))
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert (decode_image(data) == 255).all()
    assert caught == []
    assert warnings.filters == before


def test_threads_do_not_disturb_each_other_or_the_filters():
    before = list(warnings.filters)
    data = encoded(Image.fromarray(photo()), "PNG")
    results = []
    threads = [
        threading.Thread(target=lambda: results.extend(decode_image(data) for _ in range(10)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    assert all(np.array_equal(result, photo()) for result in results)
    assert warnings.filters == before


SEEDS = [encoded(Image.fromarray(photo(24, 24)), name) for name in ("JPEG", "PNG", "GIF", "WEBP")]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    position=st.floats(0, 1),
    junk=st.binary(min_size=1, max_size=8),
    cut=st.floats(0.2, 1),
)
def test_broken_bytes_give_an_image_or_a_problem(seed, position, junk, cut):
    start = int(position * len(seed))
    data = (seed[:start] + junk + seed[start + len(junk) :])[: max(1, int(cut * len(seed)))]
    try:
        decoded = decode_image(data)
    except ImageProblem as problem:
        assert problem.kind in SkipKind
    else:
        assert decoded.dtype == np.uint8 and decoded.shape[2] == 3


def test_a_cut_file_that_pillow_does_not_know_names_no_object_in_memory():
    with pytest.raises(ImageProblem) as caught:
        decode_image(b"\xff\xd8\xff\xe0 no")
    assert caught.value.kind is SkipKind.TRUNCATED
    assert "BytesIO" not in str(caught.value)
