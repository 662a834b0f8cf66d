"""CSV tables with the manifest's columns."""

import pytest

from triptych.core.errors import DataError
from triptych.data.readers.manifests import read_csv
from triptych.data.skips import SkipKind
from triptych.data.source import DataSourceConfig, RecordList


def read(tmp_path, content):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "m.csv").write_bytes(data)
    return RecordList.of(read_csv(DataSourceConfig(path=str(tmp_path / "m.csv"))))


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_delimiters_line_ends_and_marks(tmp_path, delimiter, end, mark):
    rows = [["Image", "caption"], ["a.jpg", "one"], ["b.jpg", "two"], []]
    found = read(tmp_path, mark + end.join(delimiter.join(row) for row in rows))
    assert [r.caption for r in found.records] == ["one", "two"]
    assert found.records[1].image.path == str(tmp_path / "b.jpg")
    assert found.records[1].record_id == "3"
    assert found.skipped == []


@pytest.mark.parametrize(
    ("cell", "answers"),
    [("red", ("red",)), ("red; blue ;", ("red", "blue")), ('"[""red"", 2]"', ("red", "2"))],
)
def test_answers(tmp_path, cell, answers):
    found = read(tmp_path, f"image,question,answers\na.jpg,what colour?,{cell}\n")
    assert found.records[0].answers == answers


@pytest.mark.parametrize("cell", ["1 2 3.5 4", '"[1, 2, 3.5, 4]"', '"1,2,3.5,4"'])
def test_boxes(tmp_path, cell):
    found = read(tmp_path, f"image,phrase,box\na.jpg,the cat,{cell}\n")
    assert found.records[0].box == (1.0, 2.0, 3.5, 4.0)


def test_images_labels_and_caption_lists(tmp_path):
    found = read(
        tmp_path,
        "image,images,statement,label,caption\n"
        ",a.png;b.png,both are red,true,\n"
        "c.png,,,7,\n"
        'd.png,,,,"[""x"", ""y""]"\n'
        "e.png,,,,[sic] a cat\n",
    )
    pair, number, x, y, sic = found.records
    assert [image.path for image in pair.images] == [str(tmp_path / n) for n in ("a.png", "b.png")]
    assert pair.label is True and number.label == 7
    assert (x.caption, y.caption, sic.caption) == ("x", "y", "[sic] a cat")


def test_bad_rows_are_named_by_the_line_they_begin_on(tmp_path):
    content = (
        b"image,caption\n"
        b'a.jpg,"two\nlines"\n'
        b"b.jpg\n"
        b"c.jpg,caf\xe9\n"
        b"d.jpg,\n"
        b'e.jpg,"x"y\n'
        b"f.jpg,fine\n"
        b'g.jpg,"never closed\n'
    )
    found = read(tmp_path, content)
    assert [r.caption for r in found.records] == ["two\nlines", "fine"]
    path = tmp_path / "m.csv"
    assert {entry.where: entry.kind for entry in found.skipped} == {
        f"{path}:4": SkipKind.BAD_RECORD,
        f"{path}:5": SkipKind.NOT_UTF8,
        f"{path}:6": SkipKind.EMPTY_CAPTION,
        f"{path}:7": SkipKind.BAD_RECORD,
        f"{path}:9": SkipKind.BAD_RECORD,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,captoin\na,b\n", r"m\.csv:1: unknown field 'captoin'; did you mean 'caption'"),
        ("filename,caption\na,b\n", r"rename field 'filename' to 'image'"),
        ("a.jpg,a cat\nb.jpg,a dog\n", "the first line must name the columns"),
        ("", "the first line must name the columns"),
        ("image,caption\na,b\n".encode("utf-16"), "is UTF-16"),
    ],
)
def test_wrong_columns_stop_at_once(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, content)
