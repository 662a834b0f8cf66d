import pytest

from triptych.core.errors import DataError
from triptych.evaluation import classification as cls


def test_accuracy_of_all_and_of_each_class():
    predicted, labels = ["a", "b", "a", "c", "b"], ["a", "a", "a", "b", "b"]
    assert cls.compute_accuracy(predicted, labels) == pytest.approx(3 / 5)
    assert cls.compute_class_accuracies(predicted, labels) == {"a": 2 / 3, "b": 1 / 2}


def test_majority_baseline_takes_the_training_split():
    assert cls.majority_label([True, False, False]) is False
    assert cls.compute_majority_accuracy([1, 2, 2], [1, 1, 2, 1]) == 0.25


def test_wrong_input_is_named():
    with pytest.raises(DataError, match="1 predictions but 2"):
        cls.compute_accuracy([1], [1, 2])
    with pytest.raises(DataError, match="no label to compare"):
        cls.compute_accuracy([], [])
    with pytest.raises(DataError, match="training split"):
        cls.majority_label([])
