"""The JSON Lines manifest and what people's editors do to it."""

import json
from pathlib import Path

import pytest

from triptych.core.errors import DataError
from triptych.data.readers.manifests import locator, read_jsonl
from triptych.data.skips import SkipKind
from triptych.data.source import DataSourceConfig, RecordList


def read(tmp_path, content, name="m.jsonl", **fields):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
    return RecordList.of(read_jsonl(DataSourceConfig(path=str(tmp_path / name), **fields)))


def test_paths_start_from_the_manifest_or_image_root(tmp_path):
    line = '{"image": "sub/a.jpg", "caption": "x"}'
    assert read(tmp_path, line).records[0].image.path == str(tmp_path / "sub/a.jpg")
    assert read(tmp_path, line, image_root="/images").records[0].image.path == ("/images/sub/a.jpg")
    absolute = '{"image": "/abs/a.jpg", "caption": "x"}'
    assert read(tmp_path, absolute).records[0].image.path == "/abs/a.jpg"


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n',
        b'{"text": "a"}\r\n{"text": "b"}\r\n',
        b'{"text": "a"}\n\n   \n{"text": "b"}\n\n\n\n',
        b'{"text": "a"}\n{"text": "b"}',
    ],
)
def test_marks_line_ends_and_blank_lines_do_not_matter(tmp_path, content):
    found = read(tmp_path, content)
    assert [record.text for record in found.records] == ["a", "b"]
    assert found.skipped == []


def test_each_bad_line_is_named(tmp_path):
    content = b"\n".join(
        [
            b'{"text": "a"}',
            b"{broken",
            b'["a", "list"]',
            b'{"text": "caf\xe9"}',
            b'{"image": "a.jpg", "caption": ""}',
            b'{"width": 3}',
            b"[" * 100_000,
            b'{"text": "h"}',
        ]
    )
    found = read(tmp_path, content)
    assert [record.text for record in found.records] == ["a", "h"]
    assert [record.record_id for record in found.records] == ["1", "8"]
    path = tmp_path / "m.jsonl"
    assert {entry.where: entry.kind for entry in found.skipped} == {
        f"{path}:2": SkipKind.BAD_JSON,
        f"{path}:3": SkipKind.BAD_RECORD,
        f"{path}:4": SkipKind.NOT_UTF8,
        f"{path}:5": SkipKind.EMPTY_CAPTION,
        f"{path}:6": SkipKind.MISSING_FIELD,
        f"{path}:7": SkipKind.BAD_JSON,
    }
    assert found.num_samples == 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": "a", "captoin": "x"}, "did you mean 'caption'"),
        ({"image": "a", "Caption": "x"}, "did you mean 'caption'"),
        ({"image": "a", "question": "q", "answer": "x"}, "did you mean 'answers'"),
        ({"image_path": "a", "caption": "x"}, "rename field 'image_path' to 'image'"),
        ({"image": "a", "sentence": "x"}, "rename field 'sentence' to 'caption'"),
    ],
)
def test_misnamed_fields_stop_at_the_first_line(tmp_path, fields, message):
    with pytest.raises(DataError, match=rf"m\.jsonl:1: .*{message}"):
        read(tmp_path, json.dumps(fields))


def test_own_fields_are_left_alone(tmp_path):
    line = {"image": "a", "caption": "x", "url": "u", "file_name": "f", "description": "d"}
    line |= {"object": 3, "objects": [], "words": 7, "ocr": "x", "ocr_text": "x"}
    assert len(read(tmp_path, json.dumps(line)).records) == 1


def test_split_column(tmp_path):
    content = '{"text": "a", "split": "train"}\n{"text": "b", "split": "val"}\n'
    assert [r.text for r in read(tmp_path, content, split="val").records] == ["b"]
    with pytest.raises(DataError, match=r"no split 'valid'; did you mean 'val'\?"):
        read(tmp_path, content, split="valid")
    with pytest.raises(DataError, match="the data has no splits"):
        read(tmp_path, '{"text": "a"}', split="val")


def test_a_json_list_is_a_manifest_too(tmp_path):
    found = read(tmp_path, '[{"text": "a"}, 3, {"text": "b"}]', name="m.json")
    assert [record.text for record in found.records] == ["a", "b"]
    assert found.skipped[0].where == f"{tmp_path / 'm.json'}: [1]"


def test_utf16_says_so(tmp_path):
    with pytest.raises(DataError, match="is UTF-16 text"):
        read(tmp_path, '{"text": "a"}'.encode("utf-16"))


@pytest.mark.parametrize("root", ["/", "/a/b", ".", "a", "../a", "/a/"])
@pytest.mark.parametrize(
    "name",
    [
        "x.jpg",
        "a/x.jpg",
        "./x",
        "a//x",
        "a/./x",
        "../x",
        "/x",
        "a/",
        ".hidden/x",
        "a/..x",
        "a b",
        "é",
    ],
)
def test_paths_are_joined_as_pathlib_does(root, name):
    assert locator(Path(root))(name).path == str(Path(root) / name)


def test_urls_stay_as_they_are():
    assert locator(Path("/a"))("https://h/x.jpg").path == "https://h/x.jpg"
