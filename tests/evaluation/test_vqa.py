import json
from pathlib import Path

import numpy as np
import pytest

from triptych.core.errors import DataError
from triptych.evaluation import vqa

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "data" / "golden" / "vqa_accuracy.json").read_text()
)


def test_accuracy_equals_the_official_script_on_400_questions():
    predictions = {i: item["prediction"] for i, item in enumerate(GOLDEN["items"])}
    answers = {i: item["answers"] for i, item in enumerate(GOLDEN["items"])}
    accuracies = vqa.compute_vqa_accuracies(predictions, answers)
    assert len(accuracies) == 400
    expected = np.array([item["accuracy"] for item in GOLDEN["items"]])
    np.testing.assert_allclose(np.round(100 * accuracies, 2), expected, atol=1e-9)
    assert round(100 * accuracies.mean(), 2) == GOLDEN["overall"]


def test_normalised_answers_equal_the_official_script():
    for item in GOLDEN["items"]:
        assert vqa.normalize_answer(item["prediction"]) == item["normalized_prediction"]


@pytest.mark.parametrize(
    ("answer", "normalised"),
    [  # worked by hand along the script
        ("The Dog.", "dog"),
        ("None", "0"),
        ("two dogs", "2 dogs"),
        ("dont know", "don't know"),
        ("left/right", "left right"),
        ("black, white", "black white"),
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),
        ("t-shirt", "t shirt"),
        ("3.5", "3.5"),
        ("u.s.", "us"),
        ("." * 40, "." * 8),
    ],
)
def test_normalize_answer(answer, normalised):
    assert vqa.normalize_answer(answer) == normalised


@pytest.mark.parametrize(
    ("matches", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_ten_answers_give_the_known_steps(matches, accuracy):
    answers = ["yes"] * matches + [f"x{i}" for i in range(10 - matches)]
    assert vqa.vqa_accuracy("yes", answers) == pytest.approx(accuracy)


def test_ten_equal_answers_are_not_normalised():
    assert vqa.vqa_accuracy("Two", ["two"] * 10) == 0.0
    assert vqa.vqa_accuracy("Two", ["two"] * 9 + ["three"]) == 1.0


@pytest.mark.parametrize(
    ("answers", "accuracy"),
    [
        (["the Dog"], 1.0),
        (["cat"], 0.0),
        (["dog", "dog"], 1.0),
        (["dog", "cat"], 0.5),
        (["dog", "cat", "cow"], 1 / 3),
        (["dog", "dog", "cow"], 2 / 3),
        (["dog", "dog", "dog"], 1.0),
        (["dog", "dog", "dog", "cow"], (3 * 2 / 3 + 1) / 4),
    ],
)
def test_fewer_answers_follow_the_documented_rule(answers, accuracy):
    assert vqa.vqa_accuracy("dog", answers) == pytest.approx(accuracy)


def test_a_question_without_answers_is_an_error():
    with pytest.raises(DataError, match="no answer"):
        vqa.vqa_accuracy("dog", [])
    with pytest.raises(DataError, match="no answer"):
        vqa.compute_vqa_accuracies({3: "dog"}, {})
