"""The report on a whole dataset, against a small one whose every fault was put there."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from triptych.data.check import (
    CheckSettings,
    Spread,
    box_problem,
    caption_problem,
    check_sources,
)
from triptych.data.collate import GroundingCollator, PretrainingCollator, SampleProblem
from triptych.data.doctor.texts import normalise_text
from triptych.data.manifest import DataSourceConfig
from triptych.data.records import Record
from triptych.data.skips import SkipKind
from triptych.data.transforms.pipeline import TransformedImage
from triptych.text import Tokenizer


def save(path, width, height, seed=0):
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(array).save(path)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "cat"]))
    return Tokenizer.load(path)


@pytest.fixture
def source(tmp_path):
    save(tmp_path / "a.png", 20, 10)
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    save(tmp_path / "b.jpg", 40, 30, seed=1)
    save(tmp_path / "c.png", 60, 90, seed=2)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:-100])
    (tmp_path / "html.jpg").write_bytes(b"<html>")
    lines = [
        {"image": "a.png", "caption": "a red cat"},
        {"image": "copy.png", "caption": "A red cat!"},  # the same image and words
        {"image": "b.jpg", "caption": "a  Red cat"},
        {"image": "c.png", "caption": ["one two three four five", "six"]},
        {"image": "cut.jpg", "caption": ["two lost", "by one image"]},
        {"image": "html.jpg", "caption": "not an image"},
        {"image": "absent.jpg", "caption": "absent"},
        {"image": "b.jpg", "caption": ""},
        {"image": "a.png", "phrase": "inside", "box": [0, 0, 20, 10]},
        {"image": "a.png", "phrase": "outside", "box": [20, 0, 20, 5]},
        {"text": "no image"},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return DataSourceConfig(path=str(path))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_report_finds_every_fault(source, tmp_path, num_threads):
    report = check_sources([source], CheckSettings(num_threads=num_threads))
    assert report.num_total == 13  # 11 lines, two of which hold two captions
    assert report.num_records == 12
    assert report.num_usable == 7
    assert report.num_bad == 6
    assert report.num_images == 7
    assert report.field_counts == {"image": 11, "caption": 9, "phrase": 2, "box": 2, "text": 1}
    assert report.width_px == Spread(20, 30, pytest.approx(57), 60)  # of 20, 20, 40, 60
    assert report.height_px == Spread(10, 20, pytest.approx(81), 90)
    assert (report.caption_words.minimum, report.caption_words.maximum) == (1, 5)
    assert report.caption_words.median == 3
    pair = [str(tmp_path / "a.png"), str(tmp_path / "copy.png")]
    assert report.duplicate_images == [pair]
    assert report.duplicate_captions == {"a red cat": 3}
    assert report.duplicate_pairs == ["2"]
    assert report.skip_counts == {
        "truncated": 2,
        "empty_caption": 1,
        "not_an_image": 1,
        "missing_file": 1,
        "bad_box": 1,
    }


def test_lines_name_counts_and_places(source, tmp_path):
    text = "\n".join(check_sources([source]).lines())
    assert "7 usable of 13" in text
    assert "6 of 13 (46.15%)" in text
    assert f"{tmp_path / 'm.jsonl'}:8: caption is empty" in text
    assert text.count(f"{tmp_path / 'cut.jpg'}: ") == 1
    assert "20 to 60 px, median 30" in text
    assert "'a red cat' 3 times" in text
    assert "box [20.0, 0.0, 20.0, 5.0] lies outside the 20 x 10 image" in text


def test_to_dict_is_json_and_skipped_lists_each_place_once(source, tmp_path):
    report = check_sources([source])
    plain = json.loads(json.dumps(report.to_dict()))
    names = ("minimum", "median", "percentile_95", "maximum")
    assert [plain["width_px"][name] for name in names] == pytest.approx([20, 30, 57, 60])
    assert plain["num_bad"] == 6
    report.write_skipped(tmp_path / "out" / "skipped.jsonl")
    lines = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    kinds = {json.loads(line)["where"]: json.loads(line)["kind"] for line in lines}
    assert len(lines) == len(kinds) == 5
    assert kinds[str(tmp_path / "cut.jpg")] == "truncated"


def test_a_clean_dataset_says_so(tmp_path):
    save(tmp_path / "a.png", 40, 40)
    (tmp_path / "m.csv").write_text("image,caption\na.png,a cat\n")
    seen = []
    report = check_sources(
        [DataSourceConfig(path=str(tmp_path / "m.csv"))],
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert report.bad_share == 0 and report.num_usable == 1
    assert report.lines()[-2:] == ["found        nothing", "skipped      none"]
    assert seen == [(1, 1)]


def test_several_sources_are_one_report(source, tmp_path):
    (tmp_path / "more.txt").write_text("x\ny\n")
    report = check_sources([source, DataSourceConfig(path=str(tmp_path / "more.txt"))])
    assert report.field_counts["text"] == 3
    assert report.num_total == 15


def test_a_missing_clip_is_found(tmp_path):
    (tmp_path / "a.mp4").touch()
    lines = [{"video": f"{name}.mp4", "caption": "x"} for name in ("a", "b")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = check_sources([DataSourceConfig(path=str(tmp_path / "m.jsonl"))])
    assert {(skipped.kind, skipped.where) for skipped in report.skipped} == {
        (SkipKind.MISSING_FILE, str(tmp_path / "b.mp4")),
        (SkipKind.TRUNCATED, str(tmp_path / "a.mp4")),  # 0 bytes
    }


@pytest.mark.parametrize(
    ("box", "is_bad"),
    [
        ((0, 0, 100, 50), False),
        ((-7, -7, 200, 100), False),  # reaches out on all sides, and is cut off
        ((99, 49, 10, 10), False),
        ((100, 0, 10, 10), True),
        ((0, 50, 10, 10), True),
        ((-10, 0, 10, 10), True),
        ((0, -10.5, 10, 10), True),
    ],
)
def test_the_check_calls_those_boxes_bad_that_training_leaves_out(tokenizer, box, is_bad):
    record = Record(record_id="1", phrase="the cat", box=box)
    assert (box_problem(record, 100, 50) is not None) == is_bad
    image = TransformedImage(np.zeros((4, 4, 3), np.uint8), width=100, height=50)
    assert _is_left_out(GroundingCollator(tokenizer), record, image) == is_bad


@pytest.mark.parametrize(
    ("caption", "is_bad"), [("!!!", True), ("- / -", True), ("...a", False), ("a cat", False)]
)
def test_the_check_calls_those_captions_bad_that_training_leaves_out(tokenizer, caption, is_bad):
    record = Record(record_id="1", caption=caption)
    assert (caption_problem(record) is not None) == is_bad
    image = TransformedImage(np.zeros((4, 4, 3), np.uint8), width=100, height=50)
    assert _is_left_out(PretrainingCollator(tokenizer), record, image) == is_bad
    assert caption_problem(replace(record, question="what is it?")) is None


def _is_left_out(collator, record, image):
    try:
        collator.sample(record, image, np.random.default_rng(0))
    except SampleProblem:
        return True
    return False


def test_an_emptied_caption_is_counted_and_named(tmp_path):
    save(tmp_path / "a.png", 40, 40)
    (tmp_path / "m.csv").write_text("image,caption\na.png,a cat\na.png,!!!\n")
    report = check_sources([DataSourceConfig(path=str(tmp_path / "m.csv"))])
    assert (report.num_usable, report.num_bad) == (1, 1)
    (skipped,) = report.skipped
    assert skipped.kind is SkipKind.EMPTY_CAPTION
    assert skipped.message == "nothing is left of the caption '!!!' once it is cleaned"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("A cat.", "a  CAT", True),
        ("Ein Stra\u00dfenhund", "ein strassenhund!", True),
        ("\ufb01ve cats", "five cats", True),  # a ligature
        ("a cat", "a cats", False),
        ("a b", "ab", False),
    ],
)
def test_normalised_captions(one, other, same):
    assert (normalise_text(one) == normalise_text(other)) is same
