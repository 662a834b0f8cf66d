"""The readers of the public formats take what the built-in world writes, and lose nothing."""

import json

import pytest

from triptych.core.errors import ConfigError
from triptych.data.manifest import DataSourceConfig, read_records
from triptych.scenes.config import SPLITS
from triptych.scenes.write import write_scenes

SIZES = {"train": 20, "val": 8, "test": 9, "compositional": 10}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes") / "world"
    return write_scenes(out, 20, num_val=8, num_test=9, num_compositional=10)


def records(path, image_root=None, split=None):
    root = str(image_root) if image_root else None
    found = read_records(DataSourceConfig(path=str(path), image_root=root, split=split))
    assert not found.skipped
    assert all(image.read()[:2] for record in found.records for image in record.all_images())
    return found.records


@pytest.mark.parametrize("split", SPLITS)
def test_captions(files, split):
    truth = [json.loads(line) for line in files.truth(split).read_text().splitlines()]
    expected = [(str(t["image_id"]), caption) for t in truth for caption in t["captions"]]
    karpathy = records(files.karpathy, files.images, split)
    official = records(files.coco_captions(split), files.split_images(split))
    for found in (karpathy, official):
        assert [(record.image_id, record.caption) for record in found] == expected
    shards = records(files.shards(split))
    assert [record.caption for record in shards] == [t["captions"][0] for t in truth]


@pytest.mark.parametrize("split", SPLITS)
def test_questions(files, split):
    written = json.loads(files.vqa_questions(split).read_text())["questions"]
    found = records(files.vqa_questions(split), files.images)
    assert [record.question for record in found] == [line["question"] for line in written]
    assert all(len(record.answers) == 10 and len(set(record.answers)) == 1 for record in found)
    assert {record.answer_type for record in found} <= {"yes/no", "number", "other"}


@pytest.mark.parametrize("split", SPLITS)
def test_references(files, split):
    truth = [json.loads(line) for line in files.truth(split).read_text().splitlines()]
    boxes = {(str(t["image_id"]), tuple(thing["box"])) for t in truth for thing in t["objects"]}
    found = records(files.refs, files.images, split)
    assert {record.image_id for record in found} == {str(t["image_id"]) for t in truth}
    assert all((record.image_id, record.box) in boxes and record.phrase for record in found)


@pytest.mark.parametrize("split", SPLITS)
def test_statements_hypotheses_and_classes(files, split):
    statements = records(files.nlvr2(split), files.nlvr2_images(split))
    assert [len(record.images) for record in statements] == [2] * max(1, SIZES[split] // 5)
    assert statements[0].label is True
    hypotheses = records(files.snli_ve(split), files.split_images(split))
    assert [record.label for record in hypotheses[:3]] == ["entailment", "neutral", "contradiction"]
    assert len(hypotheses) == SIZES[split]
    classes = records(files.classes(split))
    assert len(classes) == max(1, SIZES[split] // 5)


def test_corpus(files):
    lines = files.corpus.read_text().splitlines()
    assert [record.text for record in records(files.corpus)] == lines


def test_clips(tmp_path):
    files = write_scenes(tmp_path / "w", 2, formats=(), num_clips=3)
    found = records(files.clips, split="train")
    assert len({record.video for record in found}) == 3 and len(found) == 6


@pytest.mark.parametrize("images_per_statement", [1, 3])
def test_the_number_of_statements_can_be_chosen(tmp_path, images_per_statement):
    files = write_scenes(
        tmp_path / "world",
        20,
        num_val=0,
        num_test=9,
        num_compositional=0,
        formats=("nlvr2",),
        images_per_statement=images_per_statement,
    )
    for split in ("train", "test"):
        found = records(files.nlvr2(split), files.nlvr2_images(split))
        assert len(found) == SIZES[split] // images_per_statement


def test_no_image_for_a_statement_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="images_per_statement = 0: must be at least 1"):
        write_scenes(tmp_path / "world", 20, formats=("nlvr2",), images_per_statement=0)
