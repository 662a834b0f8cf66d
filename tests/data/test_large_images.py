"""Images of many pixels: the limit, what is decoded smaller, and strips that change nothing."""

import io
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from triptych.cli.main import main
from triptych.core.errors import ConfigError
from triptych.data import images
from triptych.data.batches import ImageCache
from triptych.data.images import decode_image, decode_to_shrink, max_image_pixels, pixels_allowed
from triptych.data.masks import decode_mask
from triptych.data.records import ImageSource
from triptych.data.shards import shrink
from triptych.data.skips import ImageProblem, SkipKind
from triptych.data.transforms.pipeline import ImageTransform, ImageTransformConfig
from triptych.serving.inputs import prepare_images

MODES = (
    "1",
    "L",
    "P",
    "LA",
    "RGB",
    "RGBA",
    "CMYK",
    "LAB",
    "I",
    "F",
    "I;16",
    "I;16B",
    "PA",
)


def picture(width=60, height=40):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 5 % 256, columns * 4 % 256, (rows + columns) % 256], 2).astype("uint8")


def encode(image, kind, **settings):
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def in_mode(mode):
    """Return a file of an image in a mode, of whatever format keeps it."""
    rgb = Image.fromarray(picture())
    if mode in ("I", "F", "I;16", "I;16B"):
        kind = {"I": "int32", "F": "float32", "I;16": "<u2", "I;16B": ">u2"}[mode]
        return encode(Image.fromarray(picture()[..., 0].astype(kind) * 200), "TIFF")
    if mode in ("P", "PA"):
        image = rgb.convert("P")
        return encode(image, "PNG", **({"transparency": 3} if mode == "PA" else {}))
    image = rgb.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(picture()[..., 2]))
    return encode(image, "TIFF" if mode in ("CMYK", "LAB") else "PNG")


@pytest.mark.parametrize("mode", MODES)
def test_strips_give_the_same_bytes_as_the_whole(monkeypatch, mode):
    data = in_mode(mode)
    whole = decode_image(data)
    for pixels in (1, 7 * 60, 3000):  # a row, seven, more than the image
        monkeypatch.setattr(images, "STRIP_PIXELS", pixels)
        stripped = decode_image(data)
        assert np.array_equal(stripped, whole)
        assert stripped.flags.c_contiguous and stripped.flags.writeable


@pytest.mark.parametrize("orientation", range(1, 9))
def test_strips_of_rotated_images_give_the_same_bytes(monkeypatch, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(picture()), "JPEG", exif=exif, quality=90)
    whole = decode_image(data)
    monkeypatch.setattr(images, "STRIP_PIXELS", 600)
    assert np.array_equal(decode_image(data), whole)


def test_a_stretch_is_that_of_the_whole_image_not_of_a_strip(monkeypatch):
    values = np.linspace(-5.0, 90_000.0, 2400, dtype="float32").reshape(40, 60)
    values[3, 3], values[4, 4] = np.nan, np.inf
    data = encode(Image.fromarray(values), "TIFF")
    whole = decode_image(data)
    assert whole.min() == 0 and whole.max() == 255
    monkeypatch.setattr(images, "STRIP_PIXELS", 60)
    assert np.array_equal(decode_image(data), whole)


@pytest.fixture
def small_limits(monkeypatch):
    """Let 2,000 pixels be many: images of 60 x 40 are shrunk, by 2 or 4."""
    monkeypatch.setattr(images, "WHOLE_PIXELS", 2000)
    monkeypatch.setattr(images, "SHRUNK_PIXELS", 700)
    monkeypatch.setattr(images, "LEAST_SIDE", 10)


def cmyk_jpeg(width, height):
    return encode(Image.fromarray(picture(width, height)).convert("CMYK"), "JPEG")


def rotated_jpeg(width, height):
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(Image.fromarray(picture(width, height)), "JPEG", exif=exif)


@pytest.mark.parametrize(
    "make",
    [
        lambda w, h: encode(Image.fromarray(picture(w, h)), "JPEG"),
        lambda w, h: encode(Image.fromarray(picture(w, h)), "PNG"),
        lambda w, h: encode(Image.fromarray(picture(w, h)).convert("P"), "PNG"),
        lambda w, h: encode(Image.fromarray(picture(w, h)[..., 0].astype("u2") * 257), "PNG"),
        lambda w, h: encode(Image.fromarray(picture(w, h)).convert("RGBA"), "TIFF"),
        cmyk_jpeg,
        rotated_jpeg,
    ],
)
@pytest.mark.parametrize(("width", "height"), [(60, 40), (61, 43), (120, 80)])
def test_a_very_large_image_is_decoded_smaller(small_limits, make, width, height):
    data = make(width, height)
    whole = decode_image(data)
    small, size = decode_to_shrink(data)
    assert size == (whole.shape[1], whole.shape[0])
    factor = 4 if width > 100 else 2
    expected = tuple(-(-side // factor) for side in whole.shape[:2])
    assert small.shape == (*expected, 3)
    even = whole[: whole.shape[0] // factor * factor, : whole.shape[1] // factor * factor]
    mean = even.reshape(even.shape[0] // factor, factor, -1, factor, 3).mean((1, 3))
    assert np.abs(small[: mean.shape[0], : mean.shape[1]] - mean).mean() < 12  # JPEG's own way


def test_up_to_the_usual_limit_nothing_changes():
    for data in (in_mode("RGB"), in_mode("I;16"), encode(Image.fromarray(picture()), "JPEG")):
        small, size = decode_to_shrink(data)
        assert np.array_equal(small, decode_image(data))
        assert size == (60, 40)


def test_a_narrow_image_keeps_its_short_side(small_limits):
    data = encode(Image.fromarray(picture(400, 15)), "PNG")
    assert decode_to_shrink(data)[0].shape == (15, 400, 3)


def test_models_and_shards_see_the_size_of_the_whole_image(small_limits, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(Image.fromarray(picture(120, 80)), "PNG"))
    transform = ImageTransform(ImageTransformConfig(image_size=16), train=False)
    image, sizes = prepare_images([str(path)], [0], transform)
    assert image.shape == (1, 3, 16, 16)
    assert sizes == [(120, 80)]
    data, scale = shrink(path.read_bytes(), 12)
    assert scale == 0.1
    assert decode_image(data).shape == (8, 12, 3)


def test_training_keeps_every_pixel_where_a_box_counts_them(small_limits, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(Image.fromarray(picture(120, 80)), "PNG"))
    cache = ImageCache(10**6)
    for _ in range(2):
        assert cache(ImageSource(str(path))).shape == (20, 30, 3)
        assert cache(ImageSource(str(path)), whole=True).shape == (80, 120, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_the_limit_is_a_setting(kind):
    data = encode(Image.fromarray(picture()), kind)
    with pytest.raises(ImageProblem, match=r"claims 60 x 40 pixels, more than the 2399") as caught:
        decode_image(data, max_pixels=2399)
    assert caught.value.kind is SkipKind.DECOMPRESSION_BOMB
    assert decode_image(data, max_pixels=2400).shape == (40, 60, 3)
    with pixels_allowed(2399), pytest.raises(ImageProblem, match="max_image_pixels allows more"):
        decode_image(data)
    with pixels_allowed(2400):
        decode_image(data)


def test_a_limit_above_pillows_own_holds(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow stops at twice as many
    for mode in ("RGB", "I;16", "P"):
        with pytest.raises(ImageProblem, match=r"more than the 100|exceeds limit of 200"):
            decode_image(in_mode(mode))
        assert decode_image(in_mode(mode), max_pixels=2400).shape == (40, 60, 3)
        assert Image.MAX_IMAGE_PIXELS == 100


def test_a_mask_has_the_limit_of_images(tmp_path):
    path = tmp_path / "m.png"
    path.write_bytes(in_mode("L"))
    with pixels_allowed(2399), pytest.raises(ImageProblem, match="claims 60 x 40 pixels"):
        decode_mask(ImageSource(str(path)))


def test_the_limit_ends_with_its_block_and_reaches_processes_that_begin_in_it():
    before = max_image_pixels()
    with pixels_allowed(7):
        with pixels_allowed(None):
            assert max_image_pixels() == 7
        with pixels_allowed(9):
            assert max_image_pixels() == 9
        assert max_image_pixels() == 7
        assert os.environ[images.PIXELS_VARIABLE] == "7"
    assert max_image_pixels() == before
    with (
        pytest.raises(ConfigError, match="max_image_pixels = 0: must be at least 1"),
        pixels_allowed(0),
    ):
        pass


def test_the_flag_comes_before_the_verb(tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), picture())
    manifest = tmp_path / "a.jsonl"
    manifest.write_text('{"image": "a.png", "caption": "a"}\n')
    assert main(["--max-image-pixels", "2400", "data", "check", str(manifest)]) == 0
    assert main(["--max-image-pixels", "2399", "data", "check", str(manifest)]) == 1
    assert "more than the 2399 that are allowed" in capsys.readouterr().out
    assert main(["--max-image-pixels", "-3", "data", "check", str(manifest)]) == 2
    assert main(["--max-image-pixels"]) == 2
    assert "must be a whole number" in capsys.readouterr().err
