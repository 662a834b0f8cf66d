"""Pixels without an image format: their PNG, their place in a record, and unpacked files."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from triptych.core.errors import DataError
from triptych.data.columns import RECORDS, Columns, ColumnWriter
from triptych.data.images import decode_image
from triptych.data.pixels import encode_pixels, pixel_layout, unpacked
from triptych.data.records import ImageSource, Record
from triptych.data.skips import ImageProblem, SkipKind

IMAGE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("order", "axes"),
    [("pixels", (0, 1, 2)), ("planes", (2, 0, 1)), ("columns", (2, 1, 0))],
)
def test_a_slice_of_pixels_is_read_as_the_image(tmp_path, order, axes):
    data = IMAGE.transpose(axes).tobytes()
    (tmp_path / "a.bin").write_bytes(b"head" + data + b"tail")
    layout = pixel_layout(order, 3, 5, 7)
    source = ImageSource(str(tmp_path / "a.bin"), 4, len(data), "[0]", layout)
    np.testing.assert_array_equal(decode_image(source), IMAGE)
    assert source.read().startswith(b"\x89PNG")


def test_numbers_as_text(tmp_path):
    grey = IMAGE[:, :, 0]
    data = " ".join(map(str, grey.ravel())).encode()
    png = encode_pixels(data, pixel_layout("decimal", 1, 5, 7), "a")
    np.testing.assert_array_equal(decode_image(png), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("data", [b"1 2 x", b"1 2 256", b"1 2 -1", b"1 2", b"1 2 3 4", b"1.5 2 3"])
def test_what_is_no_row_of_numbers_is_a_bad_record(data):
    with pytest.raises(ImageProblem, match=r"a\.csv") as caught:
        encode_pixels(data, "decimal 1x1x3", "a.csv")
    assert caught.value.kind is SkipKind.BAD_RECORD


@pytest.mark.parametrize("layout", ["", "rows 3x1x1", "planes 2x1x1", "planes 3x1"])
def test_an_unknown_layout_is_an_error(layout):
    with pytest.raises(DataError, match="no layout of pixels"):
        encode_pixels(b"abc", layout, "a")


def test_a_file_that_ends_early_is_truncated(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(50))
    with pytest.raises(ImageProblem) as caught:
        ImageSource(str(tmp_path / "a.bin"), 0, 105, "[0]", "planes 3x5x7").read()
    assert caught.value.kind is SkipKind.TRUNCATED


def test_the_layout_survives_the_index_and_other_processes(tmp_path):
    source = ImageSource("a.bin", 4, 105, "[0]", "planes 3x5x7")
    plain = ImageSource("b.jpg")
    records = [
        Record(record_id="0", image=source, image_id="0", label="cat"),
        Record(record_id="1", image=plain, image_id="b.jpg"),
        Record(record_id="2", images=(source, plain), statement="s"),
    ]
    writer = ColumnWriter(tmp_path / "rows", RECORDS)
    writer.write(records)
    writer.close()
    assert list(Columns(tmp_path / "rows", RECORDS)) == records
    assert pickle.loads(pickle.dumps(records)) == records
    assert replace(source, raw=None) != source


def test_a_compressed_file_is_unpacked_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    packed = tmp_path / "a.gz"
    packed.write_bytes(b"one")
    calls = []

    def read():
        calls.append(1)
        yield from (b"ab", b"cd")

    first = unpacked(packed, "x", read)
    assert first.read_bytes() == b"abcd" and unpacked(packed, "x", read) == first
    assert len(calls) == 1
    assert unpacked(packed, "y", read) != first
    packed.write_bytes(b"another")  # another size
    assert unpacked(packed, "x", read) != first
    assert len(calls) == 3


def test_nothing_half_unpacked_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.gz").write_bytes(b"one")

    def read():
        yield b"ab"
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        unpacked(tmp_path / "a.gz", "x", read)
    left = [path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert left == [".lock"]


def test_a_cache_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    (tmp_path / "cache").write_bytes(b"a file")
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.gz").write_bytes(b"one")
    with pytest.raises(DataError, match="TRIPTYCH_CACHE"):
        unpacked(tmp_path / "a.gz", "x", lambda: iter([b"a"]))
