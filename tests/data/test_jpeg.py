"""JPEG markers, read from files that Pillow wrote."""

import io

import numpy as np
import pytest
from PIL import Image

from triptych.data.images import read_jpeg_header


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


@pytest.mark.parametrize(
    ("data", "is_plain"),
    [
        (jpeg(), True),
        (jpeg("L"), True),
        (jpeg(progressive=True), True),
        (jpeg(exif=exif(1)), True),
        (jpeg(exif=exif(6)), False),
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
