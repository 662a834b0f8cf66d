"""Records and the bytes that an image source points to."""

import pytest

from triptych.core.errors import DataError
from triptych.data.records import ImageSource, Record
from triptych.data.skips import ImageProblem, SkipKind


def test_reads_a_whole_file(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    assert ImageSource(str(tmp_path / "a.bin")).read() == b"abc"


def test_reads_a_slice_of_a_shard(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    source = ImageSource(str(tmp_path / "a.tar"), 3, 4, "x.jpg")
    assert source.read() == b"3456"
    assert str(source) == f"{tmp_path / 'a.tar'}::x.jpg"


@pytest.mark.parametrize(
    ("name", "offset", "size", "kind"),
    [
        ("absent.jpg", None, None, SkipKind.MISSING_FILE),
        ("absent.tar", 0, 4, SkipKind.MISSING_FILE),
        ("file/inside.jpg", None, None, SkipKind.MISSING_FILE),
        (".", None, None, SkipKind.UNREADABLE),
        ("nul\0.jpg", None, None, SkipKind.UNREADABLE),
        ("file", 3, 100, SkipKind.TRUNCATED),
        ("file", 100, 1, SkipKind.TRUNCATED),
    ],
)
def test_what_cannot_be_read_has_a_kind(tmp_path, name, offset, size, kind):
    (tmp_path / "file").write_bytes(b"12345")
    source = ImageSource(f"{tmp_path}/{name}", offset, size, "member")
    with pytest.raises(ImageProblem, match=r"(no such file|cannot be read|ends after)") as caught:
        source.read()
    assert caught.value.kind is kind
    assert isinstance(caught.value, DataError)


def test_all_images_puts_the_single_image_first():
    one, two, three = (ImageSource(name) for name in "abc")
    record = Record(record_id="1", image=one, images=(two, three))
    assert record.all_images() == (one, two, three)
    assert Record(record_id="2", text="no image").all_images() == ()
