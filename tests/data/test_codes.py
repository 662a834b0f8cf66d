"""Codes in shards: what is written is what is read, beside all that is known of an image."""

import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from triptych.core.errors import DataError
from triptych.data.check import check_sources
from triptych.data.codes import (
    CodesAbout,
    CodeShardWriter,
    check_stored_codes,
    encode_codes,
    read_codes,
)
from triptych.data.readers.webdataset import read_webdataset
from triptych.data.records import ImageSource, Record
from triptych.data.samples import SharedImage, group_by_image
from triptych.data.skips import ImageProblem
from triptych.data.source import DataSourceConfig, RecordList

ABOUT = CodesAbout(tokenizer="abc", num_codes=512, image_size=32)


def record(number, image, **fields):
    return Record(record_id=str(number), image=ImageSource(image), **fields)


def test_captions_of_one_image_are_one_sample():
    records = [
        record(0, "a.jpg", caption="a dog", image_id="a"),
        record(1, "b.jpg", caption="a cat", image_id="b"),
        record(2, "a.jpg", caption="an animal", image_id="a"),
    ]
    groups = group_by_image(records)
    assert [g.image.path for g in groups] == ["a.jpg", "b.jpg"]
    assert [r.caption for r in groups[0].records] == ["a dog", "an animal"]


def test_records_that_differ_in_more_stay_apart():
    records = [record(0, "a.jpg", question="who?"), record(1, "a.jpg", question="where?")]
    assert len(group_by_image(records)) == 2


def test_a_record_without_an_image_is_an_error():
    with pytest.raises(DataError, match="record 7: has no single image"):
        group_by_image([Record(record_id="7", text="words alone")])


def test_shards_give_back_images_fields_and_codes(tmp_path):
    groups = group_by_image(
        [
            record(0, "a.png", caption="ein Hund, größer", image_id="a", label=3),
            record(1, "a.png", caption="ein Tier", image_id="a", label=3),
            record(2, "b.jpg", phrase="the dog", box=(1.0, 2.0, 3.0, 4.5)),
            record(3, "c", answers=("yes", "no"), question="is it?"),
        ]
    )
    codes = np.arange(12).reshape(3, 4) + 65_530  # two bytes hold the first row alone
    writer = CodeShardWriter(tmp_path, samples_per_shard=2)
    for group, row in zip(groups, codes, strict=True):
        writer.write(group, f"bytes of {group.image.path}".encode(), row)
    writer.close()
    replace(ABOUT, num_codes=70_000).save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "000000.tar",
        "000001.tar",
        "image_codes.json",
    ]
    found = RecordList.of(read_webdataset(DataSourceConfig(path=str(tmp_path))))
    assert not found.skipped
    first, second, third, fourth = found.records
    assert [r.caption for r in found.records] == ["ein Hund, größer", "ein Tier", None, None]
    assert (first.image_id, first.label) == (second.image_id, second.label) == ("a", 3)
    assert (third.phrase, third.box) == ("the dog", (1.0, 2.0, 3.0, 4.5))
    assert (fourth.question, fourth.answers) == ("is it?", ("yes", "no"))
    for row, entry in zip((0, 0, 1, 2), found.records, strict=True):
        assert np.array_equal(read_codes(entry.codes, 4), codes[row])
    assert first.image.read() == b"bytes of a.png"
    assert first.image.member.endswith(".png")
    assert fourth.image.member.endswith(".jpg")


def test_equal_content_gives_equal_bytes(tmp_path):
    shards = []
    for name in ("one", "two"):
        writer = CodeShardWriter(tmp_path / name, samples_per_shard=9)
        image = SharedImage(ImageSource("a.jpg"), [record(0, "a.jpg", caption="x")])
        writer.write(image, b"data", np.array([1, 2]))
        writer.close()
        shards.append((tmp_path / name / "000000.tar").read_bytes())
    assert shards[0] == shards[1]
    with tarfile.open(tmp_path / "one" / "000000.tar") as shard:
        names = [member.name for member in shard.getmembers()]
    assert names == ["000000000.jpg", "000000000.json", "000000000.codes.npy"]


def test_a_code_takes_two_bytes_where_they_suffice():
    few, many = (encode_codes(np.array([0, top])) for top in (65_535, 65_536))
    assert len(many) - len(few) == 4


def npy(header):
    """Return an .npy file with this header and four codes."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + bytes(8)


def npz(**arrays):
    """Return an archive of arrays, as numpy takes for an array as well."""
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no array", "no stored codes"),
        (encode_codes(np.arange(5)), "holds 5 codes, not 4"),
        (encode_codes(np.arange(4))[:-1], "claims 8 bytes of codes and has 7"),
        (npy("{'descr': '<u2', 'fortran_order': False, 'shape': (1000000000000,)}"), "claims"),
        (npy("{'descr': '<u2', 'fortran_order': False, 'shape': (-4,)}"), "no stored codes"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (4,)}"), "not a row of codes"),
        (npy("((((((("), "no stored codes"),
        (npy("[" * 4000), "no stored codes"),
        (npy("\0" * 40), "no stored codes"),
        (npz(codes=np.arange(4, dtype=np.uint16)), "no stored codes"),
        (npz(), "no stored codes"),
    ],
)
def test_other_content_is_a_problem_of_the_sample(tmp_path, content, message):
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(ImageProblem, match=message):
        read_codes(ImageSource(str(path)), 4)


def test_a_code_beyond_the_codebook_is_a_problem_of_the_sample(tmp_path):
    ABOUT.save(tmp_path)
    path = tmp_path / "x.npy"
    path.write_bytes(encode_codes(np.array([0, 511])))
    assert read_codes(ImageSource(str(path)), 2).tolist() == [0, 511]
    path.write_bytes(encode_codes(np.array([0, 512])))
    with pytest.raises(ImageProblem, match="has the code 512, and the codebook 512 entries"):
        read_codes(ImageSource(str(path)), 2)


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, "\ud800", '{"tokenizer": "a", "num_codes": 1e400, "image_size": 8}', "[1]"],
)
def test_what_says_how_codes_were_made_is_checked(tmp_path, content):
    (tmp_path / "image_codes.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(DataError, match=r"image_codes\.json"):
        CodesAbout.load(tmp_path)


def test_data_check_reads_the_codes(tmp_path):
    """What `triptych data check` calls good, training can read."""
    png = io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "PNG")
    writer = CodeShardWriter(tmp_path, samples_per_shard=9)
    for number, row in enumerate(([1, 2], [3, 600], [4, 5])):
        entry = record(number, f"{number}.png", caption=f"image {number}")
        writer.write(SharedImage(entry.image, [entry]), png.getvalue(), np.array(row))
    writer.close()
    ABOUT.save(tmp_path)
    shard = tmp_path / "000000.tar"
    shard.write_bytes(shard.read_bytes().replace(encode_codes(np.array([4, 5])), npy("((((")))
    report = check_sources([DataSourceConfig(path=str(tmp_path))])
    assert (report.num_records, report.num_usable) == (3, 1)
    problems = sorted(entry.message for entry in report.skipped)
    assert "codebook 512 entries" in problems[0] and "no stored codes" in problems[1]


def test_codes_of_another_tokenizer_are_an_error(tmp_path):
    ABOUT.save(tmp_path)
    source = ImageSource(str(tmp_path / "000000.tar"), 0, 1, "a.codes.npy")
    records = [record(0, "a.jpg", caption="x", codes=source)]
    wanted = {"num_codes": 512, "image_size": 32}
    check_stored_codes(records, **wanted, tokenizer="abc")
    check_stored_codes(records, **wanted, tokenizer=None)
    for other in ({"tokenizer": "abd"}, {"num_codes": 100}, {"image_size": 64}):
        with pytest.raises(DataError, match="another image tokenizer or for another size"):
            check_stored_codes(records, **(wanted | {"tokenizer": None} | other))
    with pytest.raises(DataError, match="record 1: has no stored codes"):
        check_stored_codes([*records, record(1, "b.jpg")], **wanted, tokenizer=None)
    (tmp_path / "image_codes.json").write_text("{}")
    with pytest.raises(DataError, match=r"image_codes.json: expected a `tokenizer`"):
        check_stored_codes(records, **wanted, tokenizer=None)
