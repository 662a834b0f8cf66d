"""Localized Narratives, WIT, RedCaps and YFCC100M: official lines, and broken ones."""

import gzip
import json

import pytest
from PIL import Image

from triptych.core.errors import DataError
from triptych.data.manifest import read_records
from triptych.data.readers.web_pairs import flava_caption
from triptych.data.source import DataSourceConfig


def read(path, **options):
    return read_records(DataSourceConfig(path=str(path), **options))


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, "JPEG")


def captions(found):
    return [record.caption for record in found.records]


def narrative(image_id, caption, dataset="mscoco_val2017"):
    return json.dumps({
        "dataset_id": dataset, "image_id": image_id, "annotator_id": 93, "caption": caption,
        "timed_caption": [{"utterance": "In", "start_time": 0, "end_time": 0.2}],
        "traces": [[{"x": 0.2, "y": -0.1, "t": 0}]], "voice_recording": "a.ogg",
    })  # fmt: skip


TWO = "In this image there are doughnuts. In the background we see a car."


@pytest.mark.parametrize(
    ("name", "place", "image_id", "dataset"),
    [
        ("000000137576.jpg", ".", "137576", "mscoco_val2017"),
        ("val2017/000000137576.jpg", ".", "137576", "mscoco_val2017"),
        ("0a1b2c.jpg", ".", "0a1b2c", "open_images_train"),
        ("train/0a1b2c.jpg", ".", "0a1b2c", "open_images_train"),
        ("images/4567.jpg", ".", "4567", "Flick30k_train"),
        ("0a1b2c.jpg", "elsewhere", "0a1b2c", "open_images_train"),
    ],
)
def test_localized_narratives(tmp_path, name, place, image_id, dataset):
    path = tmp_path / "val_localized_narratives.jsonl"
    path.write_text(narrative(image_id, TWO, dataset) + "\n")
    image(tmp_path / place / name)
    root = None if place == "." else str(tmp_path / place)
    found = read(path, image_root=root)
    assert captions(found) == TWO.replace(". ", ".|").split("|")
    assert [record.record_id for record in found.records] == ["1#0", "1#1"]
    assert {record.image.path for record in found.records} == {str(tmp_path / place / name)}


def test_broken_narratives(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [narrative("1", TWO), narrative("2", " "), '{"image_id": "3"}', "{", "[]"]
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match="none of the first 2 images is found"):
        read(path)
    image(tmp_path / "1.jpg")
    found = read(path)
    assert len(found.records) == 2
    kinds = [entry.kind.value for entry in found.skipped]
    assert kinds == ["empty_caption", "missing_field", "bad_json", "bad_record"]


_COLUMNS = """language page_url image_url page_title section_title
hierarchical_section_title caption_reference_description caption_attribution_description
caption_alt_text_description mime_type original_height original_width is_main_image
attribution_passes_lang_id page_changed_recently context_page_description
context_section_description"""
WIT = _COLUMNS.split()


def wit_row(name, language="en", passes="true", **cells):
    url = f"https://upload.wikimedia.org/wikipedia/commons/d/d9/{name}"
    row = dict.fromkeys(WIT, "") | {"language": language, "image_url": url} | cells
    return "\t".join((row | {"attribution_passes_lang_id": passes})[column] for column in WIT)


WIT_ROWS = (
    wit_row("A_b%27.jpg", caption_reference_description=" a  reference ",
            caption_attribution_description="English: other"),
    wit_row("B.jpg", caption_attribution_description="English: an attribution",
            caption_alt_text_description="alt"),
    wit_row("C.jpg", passes="false", caption_attribution_description="eine Beschreibung",
            caption_alt_text_description="alt text"),
    wit_row("D.jpg"),
    wit_row("F.jpg", caption_reference_description='"a ""quoted""\nword"'),
    wit_row("E.jpg", language="de", caption_reference_description="ein Bild"),
    "one\tcell",
)  # fmt: skip


@pytest.mark.parametrize("name", ["wit_v1.val.all-00000-of-00005.tsv.gz", "wit.tsv"])
@pytest.mark.parametrize("folder", ["", "d/d9/", "wikipedia/commons/d/d9/"])
def test_wit(tmp_path, name, folder):
    data = "\n".join(["\t".join(WIT), *WIT_ROWS]).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    image(tmp_path / folder / "A_b'.jpg")
    found = read(tmp_path / name)
    assert captions(found) == ["a reference", "an attribution", "alt text", 'a "quoted" word']
    assert [entry.kind.value for entry in found.skipped] == ["bad_record"]
    assert found.records[0].image.path == str(tmp_path / f"{folder}A_b'.jpg")


def test_broken_wit(tmp_path):
    data = gzip.compress("\n".join(["\t".join(WIT), *WIT_ROWS]).encode())
    path = tmp_path / "wit_v1.train.tsv.gz"
    for content, message in (
        (data[:-9], "ends early"),
        (data[:40] + b"\xff" * 40 + data[80:], "is broken"),
        (b"plain text", "no gzip file"),
        (gzip.compress(b"a\tb\nc\td\n"), "expected WIT's columns"),
        (data, "none of the first 4 images is found"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read(path)


def redcaps(*entries):
    info = {"subreddit": "cats", "year": 2019}
    return json.dumps({"info": info, "annotations": list(entries)})


def cat(own_id, **fields):
    entry = {"image_id": own_id, "author": "a", "url": "u", "raw_caption": "My Cat!",
             "caption": f"my cat {own_id}", "subreddit": "cats", "score": 3}  # fmt: skip
    return entry | fields


def test_redcaps(tmp_path):
    folder = tmp_path / "redcaps/annotations"
    folder.mkdir(parents=True)
    bad = cat("c")
    del bad["subreddit"]
    (folder / "cats_2019.json").write_text(redcaps(cat("a"), cat("b", caption=" "), bad))
    (folder / "cats_2020.json").write_text(redcaps(cat("d")))
    (folder / "other.json").write_text("[]")
    image(tmp_path / "redcaps/images/cats/a.jpg")
    found = read(folder)
    assert captions(found) == ["my cat a", "my cat d"]
    assert [entry.kind.value for entry in found.skipped] == ["empty_caption", "missing_field"]
    one = read(folder / "cats_2019.json", image_root=str(tmp_path / "redcaps/images"))
    assert captions(one) == ["my cat a"]
    (tmp_path / "redcaps/images/cats/a.jpg").unlink()
    with pytest.raises(DataError, match="none of the first 2 images"):
        read(folder)
    (folder / "cats_2020.json").write_text('{"annotations": 1, "subreddit": 1}')
    with pytest.raises(DataError, match="no list 'annotations'"):
        read(folder / "cats_2020.json", reader="redcaps")


def photo(own_id, title, description, *, version=2, marker="0"):
    cells = [own_id, "1@N00", "nick", "2010", "1", "Canon", title, description, "tags"]
    cells += [""] * (22 - len(cells)) + [marker]
    return "\t".join(["7", own_id, "abcdef0123", *cells[1:]] if version == 2 else cells)


@pytest.mark.parametrize(
    ("version", "name"),
    [(1, "11.jpg"), (2, "11.jpg"), (2, "abc/def/abcdef0123.jpg"), (1, "images/11.jpg")],
)
def test_yfcc100m(tmp_path, version, name):
    rows = [
        photo("11", "IMG+1", "A+dog+%26amp%3B+<b>a+cat</b>+play%0Ain+the+park", version=version),
        photo("12", "The+red+house", "Das+Haus+und+der+Garten", version=version),
        photo("13", "two+words", "", version=version),
        photo("14", "A+short+film", "A+film+of+a+dog", version=version, marker="1"),
        "7\tx",
    ]
    path = tmp_path / "yfcc100m_dataset"
    path.write_text("\n".join(rows) + "\n")
    with pytest.raises(DataError, match="none of the first 2 images"):
        read(path)
    image(tmp_path / name)
    found = read(path)
    assert captions(found) == ["A dog & a cat play in the park", "The red house"]
    assert [record.record_id for record in found.records] == ["11", "12"]
    assert [entry.where for entry in found.skipped] == [f"{path}:5"]
    assert found.records[0].image.path == str(tmp_path / name)


@pytest.mark.parametrize(
    ("description", "title", "caption"),
    [
        ("a+dog+runs", "the+title+here", "a dog runs"),
        ("a+dog", "the+title+here", "the title here"),
        ("", "the+title+here", "the title here"),
        ("le+chien+est+dans+la+rue", "the+title+here", "the title here"),
        ("a+-+b", "c+d", None),
        ("le+chien+est+dans+la+rue", "un+chien+noir+et+blanc", None),
        ("%3Ca+href%3D%22x%22%3Ea+big+dog%3C%2Fa%3E", "", "a big dog"),
    ],
)
def test_flava_takes_the_description_before_the_title(description, title, caption):
    assert flava_caption(description, title) == caption


def test_another_table_is_no_yfcc100m(tmp_path):
    (tmp_path / "yfcc100m_dataset.txt").write_text("a\tb\n")
    with pytest.raises(DataError, match="has 2 cells, YFCC100M has 23 or 25"):
        read(tmp_path / "yfcc100m_dataset.txt")
