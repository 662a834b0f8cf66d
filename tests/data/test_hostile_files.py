"""Data from someone else: what is refused by name, what is skipped, and that nothing waits."""

import json
import os

import pytest
import yaml

from triptych.core.config import load_yaml, to_dict
from triptych.core.errors import ConfigError, DataError
from triptych.data.images import decode_image
from triptych.data.manifest import read_records
from triptych.data.skips import ImageProblem, SkipKind
from triptych.data.source import DataSourceConfig
from triptych.data.storage import read_slice, read_whole
from triptych.data.video import decode_frames
from triptych.evaluation.submissions import FORMS
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.text import Tokenizer


def read(path, **settings):
    return read_records(DataSourceConfig(path=str(path), index="never", **settings))


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.tar", "a.parquet", "a.arrow", "a.txt", "a.p"]
)
def test_a_pipe_under_the_name_of_any_manifest_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=r"named pipe|no such file|files are missing"):
        read(tmp_path / name)


@pytest.mark.parametrize("reader", ["jsonl", "csv", "coco", "webdataset", "parquet", "refcoco"])
def test_a_device_is_refused_by_a_reader_that_was_named(reader):
    with pytest.raises(DataError):
        read("/dev/zero", reader=reader)


@pytest.mark.parametrize("read_one", [decode_image, lambda path: decode_frames(path, 2)])
def test_an_image_and_a_clip_that_are_pipes_or_devices_are_skipped(tmp_path, read_one):
    os.mkfifo(tmp_path / "a.mp4")
    for path, what in ((str(tmp_path / "a.mp4"), "named pipe"), ("/dev/zero", "device")):
        with pytest.raises(ImageProblem, match=f"{path}: .*{what}") as caught:
            read_one(path)
        assert caught.value.kind is SkipKind.UNREADABLE


def test_slices_of_a_pipe_and_sizes_that_nothing_has_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="named pipe"):
        read_slice(str(tmp_path / "pipe"), 0, 10)
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(OSError, match="at most"):
        read_slice(str(tmp_path / "file"), 0, 2**62)
    with pytest.raises(OSError, match="named pipe"):
        read_whole(str(tmp_path / "pipe"))


@pytest.mark.parametrize("load", [Tokenizer.load, FORMS.get("vqa").read])
def test_a_tokenizer_and_a_submission_that_are_pipes_are_refused(tmp_path, load):
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match="is a named pipe"):
        load(tmp_path / "tokenizer.json")


FIELDS = ("caption", "question", "question_type", "answer_type", "premise", "domain", "label")


@pytest.mark.parametrize("field", [*FIELDS, "id", "image_id", "answers", "ocr_words"])
def test_a_record_with_lone_surrogates_is_skipped_like_other_bad_ones(tmp_path, field):
    good = {"image": "a.jpg", "caption": "a dog", "question": "what?", "answers": ["dog"]}
    bad = good | {field: ["\ud800"] if field in ("answers", "ocr_words") else "a \udfff"}
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, (good, bad, good))))
    found = read(tmp_path / "a.jsonl")
    assert len(found.records) == 2
    (skipped,) = found.skipped
    assert "a.jsonl" in skipped.where
    json.dumps(skipped.to_dict()).encode()


@pytest.mark.parametrize(
    "entry",
    [
        '{"image": "a.jpg", "phrase": "x", "box": [1e999, 0, 1, 1]}',
        '{"image": "a.jpg", "phrase": "x", "box": [NaN, 0, 1, 1]}',
        '{"image": "a.jpg", "phrase": "x", "box": [%s, 0, 1, 1]}' % ("9" * 400),
        '{"image": "a.jpg", "question": "x", "answers": [%s]}' % ("9" * 400),
        '{"image": "a.jpg", "question": "x", "answers": [NaN]}',
        '{"image": "a.jpg", "question": "x", "answers": ["y"], "answers_weight": -Infinity}',
        '{"image": "a.jpg", "caption": %s}' % ("[" * 5000),
        '{"image": "a.jpg", "caption": %s}' % ("9" * 5000),
        '{"image": {"a": 1}, "caption": "x"}',
        '{"image": "a.jpg", "caption": {"a": []}}',
        "null",
        '"text"',
        "\0",
        '{"image": "a.jpg", "caption": "x", "label": [[[]]]}',
    ],
)
def test_numbers_and_types_that_nothing_can_use_are_skipped_by_line(tmp_path, entry):
    (tmp_path / "a.jpg").touch()
    good = '{"image": "a.jpg", "caption": "a dog"}'
    (tmp_path / "a.jsonl").write_text(f"{good}\n{entry}\n{good}\n")
    found = read(tmp_path / "a.jsonl")
    assert len(found.records) == 2
    assert [skipped.where for skipped in found.skipped] == [f"{tmp_path / 'a.jsonl'}:2"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.tsv", "a.token", "wit_a.tsv", "a.txt"])
def test_a_file_without_a_line_end_is_refused_before_it_fills_the_memory(tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**37)  # without a block on the disk
    with pytest.raises(DataError, match=r"line 1 has more than 64 MiB|first line must name"):
        read(tmp_path / name)


def test_what_a_reader_raises_on_foreign_content_names_the_file(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"image": "a.jpg", "caption": "x"}')
    monkeypatch.setattr("triptych.data.readers.manifests.parse_entry", lambda *_, **__: [][1])
    with pytest.raises(DataError, match=r"a.jsonl: cannot be used as it is: IndexError"):
        read(tmp_path / "a.jsonl")


def test_a_path_that_is_too_long_is_an_error_of_ours():
    with pytest.raises(DataError, match="cannot be read"):
        read("a" * 10_000)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("image", "image_size", 2**40),
        ("image", "num_frames", 10**9),
        ("image", "mean", [float("inf"), 0.0, 0.0]),
        ("image", "std", [float("nan"), 1.0, 1.0]),
        ("crops", "num_small", 10**12),
        ("crops", "small_size", 10**6),
        ("captions", "max_text_tokens", 10**15),
        ("tokenizer", "vocab_size", 10**12),
        ("tokenizer", "num_unused", 10**12),
        ("data", "cache_mib", 10**15),
        ("data", "shuffle_window", 10**15),
        ("data", "max_image_pixels", 10**15),
        ("train", "batch_size", 10**12),
    ],
)
def test_sizes_that_no_machine_has_are_errors_of_the_config(tmp_path, section, field, value):
    plain = to_dict(build_recipe("mplug.pretrain", "smoke"))
    plain[section][field] = value
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(ConfigError, match=rf"c.yaml: .*{field}"):
        load_yaml(RunConfig, tmp_path / "c.yaml")
