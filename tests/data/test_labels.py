"""Answer lists and class names by hand; scores against the accuracy that they anticipate."""

import pytest

from triptych.core.errors import DataError
from triptych.data.collate.classification import answer_scores, answer_vocabulary, class_names
from triptych.data.records import Record
from triptych.evaluation.vqa import normalize_answer, vqa_accuracy


def asked(*answers):
    return Record(record_id="q", question="what?", answers=answers)


def vocabulary(records, **settings):
    defaults = {"min_count": 1, "max_answers": 10, "normalise": normalize_answer}
    return answer_vocabulary(records, **defaults | settings)


def test_a_question_counts_once_for_its_most_frequent_answer():
    records = [
        asked("red", "red", "blue"),  # red
        asked("Red.", "the red", "green"),  # red, once normalised
        asked("blue", "green", "green"),  # green
        asked("yellow", "blue"),  # a tie: the first
        asked(),
    ]
    assert vocabulary(records) == ("red", "green", "yellow")
    assert vocabulary(records, min_count=2) == ("red",)
    assert vocabulary(records, max_answers=2) == ("red", "green")


def test_no_frequent_answer_is_an_error_that_names_the_most_frequent():
    with pytest.raises(DataError, match="the most frequent, 'red', has 1"):
        vocabulary([asked("red")], min_count=9)
    with pytest.raises(DataError, match=r"no question has an answer: .* in the field answers"):
        vocabulary([asked()])


@pytest.mark.parametrize(
    ("votes", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_ten_answers_score_as_vlmo_writes_them(votes, score):
    answers = ["yes"] * votes + ["no"] * (10 - votes)
    assert answer_scores(answers).get("yes", 0.0) == pytest.approx(score)


@pytest.mark.parametrize(
    "answers", [("a",), ("a", "b"), ("a", "a", "b"), ("a", "b", "b", "b", "c")]
)
def test_a_score_is_the_accuracy_that_the_answer_would_earn(answers):
    scores = answer_scores(answers)
    assert scores.keys() == set(answers)
    for answer, score in scores.items():
        # one-letter answers, "a" apart, are as the normaliser leaves them
        assert score == pytest.approx(vqa_accuracy(answer + "x", [x + "x" for x in answers]))


def test_class_names_are_sorted_numbers_before_words():
    labels = [10, 9, "cat", None, "9", "2", True]
    records = [Record(record_id=str(i), label=label) for i, label in enumerate(labels)]
    assert class_names(records) == ("2", "9", "10", "True", "cat")
    with pytest.raises(DataError, match=r"all records have the label '10': .* the field label"):
        class_names(records[:1])
    with pytest.raises(DataError, match="no record has a label"):
        class_names(records[3:4])
