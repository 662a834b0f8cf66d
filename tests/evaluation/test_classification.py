import numpy as np
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


# (labels, scores, area): pairs of a positive and a negative, worked by hand.
ROC = [
    ([0, 1], [0.1, 0.9], 1.0),
    ([0, 1], [0.9, 0.1], 0.0),
    ([0, 1], [0.5, 0.5], 0.5),  # a tie is one half
    ([1, 1, 0, 0], [0.8, 0.4, 0.4, 0.1], 3.5 / 4),  # 0.4 = 0.4
    ([1, 0, 1, 0, 0], [3, 2, 1, 1, 0], (3 + 1.5) / 6),  # 1 beats 0, ties 1, loses to 2
]


@pytest.mark.parametrize(("labels", "scores", "area"), ROC)
def test_auroc_by_hand(labels, scores, area):
    assert cls.compute_auroc(scores, labels) == pytest.approx(area, abs=1e-12)


def test_auroc_counts_pairs():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 9, 60), rng.random(60) < 0.3
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels] for n in scores[~labels]]
    assert cls.compute_auroc(scores, labels) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert cls.compute_auroc(-scores, labels) == pytest.approx(1 - np.mean(pairs), abs=1e-12)


def test_auroc_needs_both_classes_and_numbers():
    with pytest.raises(DataError, match="only one kind"):
        cls.compute_auroc([0.1, 0.2], [1, 1])
    with pytest.raises(DataError, match="NaN"):
        cls.compute_auroc([0.1, float("nan")], [1, 0])


def test_f1_and_matthews_by_hand_and_as_scikit_learn():
    """scikit-learn 1.9.1: f1_score 5/6, matthews_corrcoef 7/12 of these ten."""
    predicted, labels = [1, 0, 1, 1, 0, 1, 0, 0, 1, 1], [1, 0, 0, 1, 0, 1, 1, 0, 1, 1]
    # TP 5, FP 1, FN 1, TN 3
    assert cls.compute_f1(predicted, labels) == pytest.approx(10 / 12)
    assert cls.compute_matthews(predicted, labels) == pytest.approx((15 - 1) / 24)


@pytest.mark.parametrize(
    ("predicted", "labels", "f1", "matthews"),
    [
        ([1, 0], [1, 0], 1.0, 1.0),
        ([0, 1], [1, 0], 0.0, -1.0),
        ([0, 0], [1, 0], 0.0, 0.0),  # always the same answer
        ([0, 0], [0, 0], 0.0, 0.0),
    ],
)
def test_f1_and_matthews_at_their_ends(predicted, labels, f1, matthews):
    assert cls.compute_f1(predicted, labels) == f1
    assert cls.compute_matthews(predicted, labels) == matthews
