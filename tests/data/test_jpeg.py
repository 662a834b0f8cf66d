"""JPEG markers, read from files that Pillow wrote, and decoders, compared with Pillow's."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from triptych.data import jpeg as decoders
from triptych.data.images import decode_for_training, decode_image
from triptych.data.jpeg import read_jpeg_header


def jpeg(mode="RGB", size=(30, 20), **options):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(noise[..., :3]).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def smooth(size):
    """Return colours that change slowly, as in photos, with some noise."""
    width, height = size
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize(size), dtype=int)
    return Image.fromarray((image + rng.integers(-9, 10, image.shape)).clip(0, 255).astype("u1"))


def saved(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.fixture(params=["simplejpeg", "opencv"])
def decoder(request, monkeypatch):
    """Decode plain JPEG with one library or the other."""
    if request.param == "opencv":
        monkeypatch.setattr(decoders, "_simplejpeg", lambda: None)
    else:
        assert decoders._simplejpeg() is not None, "pip install 'triptych[test]'"
    return request.param


KINDS = [
    {"quality": 95, "subsampling": "4:4:4"},
    {"quality": 90, "subsampling": "4:2:2"},
    {"quality": 75, "subsampling": "4:2:0"},
    {"quality": 60, "subsampling": "4:1:1"},
    {"quality": 85, "progressive": True},
    {"quality": 85, "restart_marker_blocks": 3},
    {"quality": 90, "optimize": True},
]


@pytest.mark.parametrize("size", [(160, 120), (161, 123), (37, 18), (8, 300), (1, 1), (17, 16)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_each_decoder_gives_the_bytes_of_pillow(decoder, mode, size):
    for options in KINDS:
        data = saved(smooth(size).convert(mode), **options)
        assert read_jpeg_header(data).is_plain
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        found = decode_image(data)
        assert found.flags.writeable and found.flags.c_contiguous
        np.testing.assert_array_equal(found, expected, err_msg=str(options))


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("size", [(160, 136), (161, 123), (37, 18), (40, 300)])
def test_each_decoder_gives_the_smaller_image_of_pillow(decoder, size, factor):
    for options in KINDS:
        data = saved(smooth(size), **options)
        image = Image.open(io.BytesIO(data))
        image.draft(None, (size[0] // factor, size[1] // factor))
        found = decode_for_training(data, lambda w, h: factor)
        assert (found.width, found.height, found.factor) == (*size, factor)
        np.testing.assert_array_equal(found.pixels, np.asarray(image), err_msg=str(options))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_images_are_those_of_pillow(decoder, orientation):
    data = saved(smooth((90, 61)), exif=exif(orientation))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode_image(data), np.asarray(upright))
    asked = []
    half = decode_for_training(data, lambda w, h: asked.append((w, h)) or 2)
    assert asked == [upright.size] == [(half.width, half.height)]
    assert half.pixels.shape[:2] == tuple(-(-side // 2) for side in upright.size[::-1])


def test_a_smaller_cmyk_image_comes_through_pillow_turned_too():
    data = saved(smooth((90, 60)).convert("CMYK"), exif=exif(6))
    found = decode_for_training(data, lambda w, h: 2 if (w, h) == (60, 90) else 1)
    whole = decode_image(data)
    assert (found.width, found.height, found.factor) == (60, 90, 2)
    assert found.pixels.shape == (45, 30, 3)
    blocks = whole.reshape(45, 2, 30, 2, 3).mean(axis=(1, 3))
    assert np.abs(found.pixels - blocks).mean() < 4


def test_other_formats_are_not_asked_for_a_factor():
    buffer = io.BytesIO()
    smooth((90, 60)).save(buffer, "PNG")
    found = decode_for_training(buffer.getvalue(), lambda w, h: pytest.fail("asked"))
    assert (found.factor, found.is_jpeg, found.pixels.shape) == (1, False, (60, 90, 3))


def test_decoders_agree_on_damaged_files(monkeypatch):
    data = bytearray(saved(smooth((160, 120)), quality=90))
    rng = np.random.default_rng(3)
    scan = len(data) // 4

    def outcome(damaged):
        try:
            return decode_image(damaged).tobytes()
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    for _ in range(60):
        damaged = bytearray(data)
        for place in rng.integers(scan, len(data) - 2, rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        damaged = bytes(damaged)
        first = outcome(damaged)
        with monkeypatch.context() as patch:
            patch.setattr(decoders, "_simplejpeg", lambda: None)
            assert outcome(damaged) == first


@pytest.mark.parametrize(
    ("data", "is_plain"),
    [
        (jpeg(), True),
        (jpeg("L"), True),
        (jpeg(progressive=True), True),
        (jpeg(exif=exif(1)), True),
        (jpeg(exif=exif(6)), True),
        (jpeg(exif=exif(9)), False),
        (jpeg(exif=b"Exif\0\0junk"), False),
        (jpeg("CMYK"), False),
        (jpeg(keep_rgb=True), False),
    ],
)
def test_what_any_decoder_reads_the_same_is_plain(data, is_plain):
    header = read_jpeg_header(data)
    assert (header.width, header.height) == (30, 20)
    assert header.is_plain is is_plain
    assert header.has_end


@pytest.mark.parametrize("missing", [1, 2, 50, 200])
def test_the_end_marker_must_follow_the_scan(missing):
    data = jpeg(exif=exif(1))[:-missing]
    assert not read_jpeg_header(data).has_end
    # an end marker within a segment before the scan, as a thumbnail has one, is not the end
    segment = b"\xff\xe5\x00\x06\xff\xd9\xff\xd9"
    assert not read_jpeg_header(data[:2] + segment + data[2:]).has_end


def test_zeros_instead_of_the_end_are_seen():
    data = jpeg()
    assert read_jpeg_header(data[:-100] + bytes(100)).is_cut_and_padded
    assert not read_jpeg_header(data + bytes(100)).is_cut_and_padded


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", jpeg()[:20], jpeg()[:200], b"\x89PNG\r\n\x1a\n"]
)
def test_no_header_no_answer(data):
    assert read_jpeg_header(data) is None
