"""Ensembles of sentences, by hand and by loops."""

import math
import re

import pytest
import torch

from triptych.core.errors import DataError
from triptych.evaluation.zero_shot import (
    TEMPLATES,
    class_embeddings,
    class_probabilities,
    class_words,
    load_templates,
    prompts,
)


def test_eighty_different_sentences_with_one_place_each():
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 80
    assert all(re.fullmatch(r"[^{}]*\{\}[^{}]*", template) for template in TEMPLATES)


def test_names_of_folders_become_words():
    assert class_words("red_circle") == "red circle"
    assert class_words(" t-shirt__2 ") == "t shirt 2"
    found = prompts(["a_b", "c"], ["one {}", "{} two"])
    assert found == [["one a b", "a b two"], ["one c", "c two"]]


def test_the_mean_of_directions_not_of_vectors():
    """Two sentences at right angles, one ten times as long: the class lies between them."""
    sentences = torch.tensor([[[10.0, 0.0], [0.0, 1.0]], [[0.0, 3.0], [0.0, 1.0]]])
    half = math.sqrt(0.5)
    expected = torch.tensor([[half, half], [0.0, 1.0]])
    torch.testing.assert_close(class_embeddings(sentences), expected)


def test_probabilities_by_hand():
    classes = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    images = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    scale = 5.0
    expected = []
    for cosines in ((1.0, 0.6), (0.0, 0.8)):
        weights = [math.exp(scale * cosine) for cosine in cosines]
        expected.append([weight / sum(weights) for weight in weights])
    found = class_probabilities(images, classes, scale)
    torch.testing.assert_close(found, torch.tensor(expected))
    hard = class_probabilities(images, classes)
    assert hard.argmax(dim=1).tolist() == found.argmax(dim=1).tolist() == [0, 1]


def test_templates_of_the_user(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("a scan of {}\n\n  {} under the lens \n")
    assert load_templates(path) == ("a scan of {}", "{} under the lens")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a scan of {}\na scan\n", r"mine.txt:2: 'a scan' must hold {} once"),
        ("{} and {}\n", "mine.txt:1"),
        ("\n", "holds no template"),
        (None, "there is no such file"),
    ],
)
def test_unusable_templates_are_named(tmp_path, text, message):
    path = tmp_path / "mine.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_templates(path)
