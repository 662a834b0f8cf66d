"""WebDataset shards; the reference is the webdataset library itself."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from triptych.core.errors import DataError
from triptych.data.images import decode_image
from triptych.data.readers.webdataset import expand_shards, is_shards, read_webdataset
from triptych.data.skips import SkipKind
from triptych.data.source import DataSourceConfig, RecordList


def jpeg(shade):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def read(path):
    return RecordList.of(read_webdataset(DataSourceConfig(path=str(path))))


def as_json(**fields):
    return json.dumps(fields).encode()


def test_shards_of_the_webdataset_library(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        for i in range(5):
            sink.write({"__key__": f"{i:04d}", "jpg": jpeg(40 * i), "txt": f"caption {i}"})
    found = read(tmp_path / "a.tar")
    assert [r.caption for r in found.records] == [f"caption {i}" for i in range(5)]
    assert [r.record_id for r in found.records] == [f"a/{i:04d}" for i in range(5)]
    for i in (3, 0, 4):  # at random
        source = found.records[i].image
        assert source.read() == jpeg(40 * i)
        assert np.abs(decode_image(source).astype(int) - 40 * i).max() <= 2
        assert str(source) == f"{tmp_path / 'a.tar'}::{i:04d}.jpg"


def test_texts_and_json_of_all_kinds(tmp_path):
    write_shard(
        tmp_path / "s.tar",
        [
            ("a/1.json", as_json(caption="from json", url="u", status="success")),
            ("a/1.jpg", jpeg(1)),
            ("a/1.txt", b"from txt"),
            ("a/2.PNG", jpeg(2)),
            ("a/2.json", as_json(text="text")),
            ("3.jpeg", jpeg(3)),
            ("3.json", as_json(question="how many?", answers=["2", "two"], image_id=9)),
            ("4.webp", jpeg(4)),
            ("4.json", as_json(phrase="the cat", box=[1, 2, 3, 4])),
            ("5.jpg", jpeg(5)),
            ("5.seg.png", jpeg(6)),
            ("5.cls", b"17\n"),
            ("6.jpg", jpeg(6)),
            ("6.json", as_json(caption=["x", "y"])),
        ],
    )
    found = read(tmp_path / "s.tar")
    assert found.skipped == []
    one, two, three, four, five, x, y = found.records
    assert (one.caption, two.caption) == ("from json", "text")
    assert (three.answers, three.image_id) == (("2", "two"), "9")
    assert four.box == (1.0, 2.0, 3.0, 4.0)
    assert (five.label, five.image.read()) == (17, jpeg(5))
    assert (x.caption, y.caption, x.image_id) == ("x", "y", y.image_id)


@pytest.mark.parametrize("suffix", ["gif", "bmp", "tif", "JFIF", "jp2"])
def test_images_of_other_formats_are_read(tmp_path, suffix):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (90, 90, 90)).save(
        buffer, Image.registered_extensions()[f".{suffix.lower()}"]
    )
    members = [(f"a.{suffix}", buffer.getvalue()), ("a.txt", b"grey")]
    write_shard(
        tmp_path / "s.tar", [*members, ("b.tif", b"mask"), ("b.png", jpeg(1)), ("b.txt", b"b")]
    )
    found = read(tmp_path / "s.tar")
    first, second = found.records
    assert not found.skipped and first.caption == "grey"
    assert np.abs(decode_image(first.image).astype(int) - 90).max() <= 2
    assert second.image.member == "b.png"


def test_bad_samples_are_named_by_their_key(tmp_path):
    write_shard(
        tmp_path / "s.tar",
        [
            ("good.jpg", jpeg(1)),
            ("good.txt", b"fine"),
            ("lone.txt", b"no image"),
            ("empty.jpg", jpeg(1)),
            ("empty.txt", b" "),
            ("bytes.jpg", jpeg(1)),
            ("bytes.txt", b"caf\xe9"),
            ("broken.jpg", jpeg(1)),
            ("broken.json", b"{"),
            ("list.jpg", jpeg(1)),
            ("list.json", b"[]"),
            ("bare.jpg", jpeg(1)),
            ("number.jpg", jpeg(1)),
            ("number.json", as_json(caption=3)),
            ("good.jpg", jpeg(2)),
        ],
    )
    found = read(tmp_path / "s.tar")
    assert [r.caption for r in found.records] == ["fine"]
    assert found.records[0].image.read() == jpeg(1)
    assert {entry.where.split("::")[1]: entry.kind for entry in found.skipped} == {
        "good.jpg": SkipKind.BAD_RECORD,
        "lone": SkipKind.MISSING_FILE,
        "empty": SkipKind.EMPTY_CAPTION,
        "bytes": SkipKind.NOT_UTF8,
        "broken": SkipKind.BAD_JSON,
        "list": SkipKind.BAD_RECORD,
        "bare": SkipKind.MISSING_FIELD,
        "number": SkipKind.CAPTION_NOT_TEXT,
    }


@pytest.mark.parametrize(
    "keep",
    [
        2560,  # between two samples
        2560 + 100,  # in the header of the second image
        2560 + 600,  # in the second image
        2560 + 1536 + 100,  # in the header of the second text
        2560 + 2048,  # before the second text
    ],
)
def test_a_cut_shard_gives_what_came_before(tmp_path, keep):
    # A sample is 512 header + 1024 image (padded) + 512 header + 512 text = 2560 bytes.
    image = jpeg(1)
    assert 512 < len(image) <= 1024
    path = tmp_path / "s.tar"
    members = [(f"{i}.{e}", d) for i in range(3) for e, d in (("jpg", image), ("txt", b"x"))]
    write_shard(path, members)
    path.write_bytes(path.read_bytes()[:keep])
    found = read(path)
    (record,) = found.records
    assert (record.record_id, record.image.read()) == ("s/0", image)
    assert found.skipped[0].kind is SkipKind.TRUNCATED


def test_a_damaged_header_and_joined_shards_are_reported(tmp_path):
    path = tmp_path / "s.tar"
    write_shard(path, [(f"{i}.{e}", b"x") for i in range(3) for e in ("jpg", "txt")])
    whole = path.read_bytes()
    assert read(path).skipped == []
    path.write_bytes(whole[:2048] + b"?" * 512 + whole[2560:])
    found = read(path)
    assert [r.record_id for r in found.records] == ["s/0"]
    assert "no header at byte 2048" in found.skipped[0].message
    path.write_bytes(whole + whole)
    found = read(path)
    assert len(found.records) == 3
    assert "joined tar files" in found.skipped[0].message


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{000000..000002}.tar", ["000000", "000001", "000002"]),
        ("{000001,x}.tar", ["000001", "x"]),
        ("0000*.tar", ["000000", "000001", "000002"]),
        ("{000000..000001}*.tar", ["000000", "000001"]),
        ("00000?.tar", ["000000", "000001", "000002"]),
        ("x.tar", ["x"]),
        ("", ["000000", "000001", "000002", "x"]),
    ],
)
def test_patterns(tmp_path, pattern, names):
    for name in ("000002", "000000", "000001", "x"):
        (tmp_path / f"{name}.tar").touch()
    path = f"{tmp_path}/{pattern}" if pattern else str(tmp_path)
    assert is_shards(path)
    assert [Path(shard).stem for shard in expand_shards(path)] == names


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{000000..000003}.tar", r"3 of 4 files are missing; the first: .*000001\.tar"),
        ("a*.tar", "1 of 1 files are missing"),
    ],
)
def test_missing_shards_are_named(tmp_path, pattern, message):
    (tmp_path / "000000.tar").touch()
    with pytest.raises(DataError, match=message):
        expand_shards(f"{tmp_path}/{pattern}")


def test_a_compressed_shard_says_what_to_do(tmp_path):
    write_shard(tmp_path / "s.tar", [("a.jpg", jpeg(1))])
    (tmp_path / "z.tar").write_bytes(gzip.compress((tmp_path / "s.tar").read_bytes()))
    with pytest.raises(DataError, match=r"z\.tar: is compressed \(gzip\).*Unpack"):
        read(tmp_path / "z.tar")


def test_other_bytes_are_no_shard(tmp_path):
    (tmp_path / "s.tar").write_bytes(b"<html>" * 200)
    with pytest.raises(DataError, match=r"s\.tar: is not a tar file"):
        read(tmp_path / "s.tar")


def test_a_shard_of_images_alone_is_read(tmp_path):
    write_shard(tmp_path / "s.tar", [("a.jpg", jpeg(1)), ("b.jpg", jpeg(2)), ("b.json", b"{}")])
    found = read(tmp_path / "s.tar")
    assert not found.skipped
    assert [(r.record_id, r.caption) for r in found.records] == [("s/a", None), ("s/b", None)]
    assert found.records[1].image.read() == jpeg(2)


@pytest.mark.parametrize(
    "pattern",
    [
        "{0..99999999999}.tar",
        "{0..999}-{0..999}-{0..999}.tar",
        "a" + "{a,b}" * 60 + ".tar",
        "{0.." + "9" * 5000 + "}.tar",
        "{" + "0" * 5000 + "..9}.tar",
    ],
)
def test_braces_are_counted_before_they_are_expanded(pattern):
    with pytest.raises(DataError, match="its braces name more than 1,000,000 files") as caught:
        expand_shards(pattern)
    assert len(str(caught.value)) < 400


def test_a_range_that_ends_before_it_begins_names_nothing(tmp_path):
    with pytest.raises(DataError, match="its braces name no file"):
        expand_shards(f"{tmp_path}/{{9..0}}.tar")
