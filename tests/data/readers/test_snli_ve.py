"""SNLI-VE hypotheses."""

import json

import pytest

from triptych.core.errors import DataError
from triptych.data.readers.reasoning import read_snli_ve
from triptych.data.skips import SkipKind
from triptych.data.source import DataSourceConfig


def line(label, hypothesis="It rains.", name="Flickr30K_ID", image="7"):
    return {
        "gold_label": label,
        "sentence1": "Rain.",
        "sentence2": hypothesis,
        name: image,
        "pairID": f"{image}#{label}",
    }


def write(tmp_path, *lines):
    path = tmp_path / "snli_ve_dev.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return DataSourceConfig(path=str(path))


@pytest.mark.parametrize("folder", ["", "flickr30k-images/"])
def test_labels_and_images(tmp_path, folder):
    (tmp_path / f"{folder}7.jpg").parent.mkdir(exist_ok=True)
    (tmp_path / f"{folder}7.jpg").touch()
    found = read_snli_ve(
        write(
            tmp_path,
            line("entailment"),
            line("contradiction", name="Flikr30kID", image="7.jpg"),
            line("-"),
            line("neutral", hypothesis=None),
            {"gold_label": "neutral", "sentence2": "No image."},
        )
    )
    assert [(r.label, r.premise, r.hypothesis, r.image_id) for r in found.records] == [
        ("entailment", "Rain.", "It rains.", "7"),
        ("contradiction", "Rain.", "It rains.", "7"),
    ]
    assert {r.image.path for r in found.records} == {str(tmp_path / f"{folder}7.jpg")}
    kinds = {entry.where.rsplit(":", 1)[1]: entry.kind for entry in found.skipped}
    assert kinds == {
        "3": SkipKind.BAD_LABEL,
        "4": SkipKind.BAD_RECORD,
        "5": SkipKind.MISSING_FIELD,
    }


def test_a_file_of_another_kind_is_named(tmp_path):
    with pytest.raises(DataError, match="no line has an SNLI-VE"):
        read_snli_ve(write(tmp_path, {"image": "a.jpg", "caption": "x"}))
