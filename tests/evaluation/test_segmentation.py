"""Areas and means against loops over pixels, written from mmsegmentation's definition."""

import math

import numpy as np
import pytest

from triptych.core.errors import CapabilityError, DataError
from triptych.core.outputs import Predictions
from triptych.evaluation import segmentation
from triptych.evaluation.segmentation import SegmentationMetric, count_areas

RNG = np.random.default_rng(3)
NAMES = ("ground", "cat", "dog", "fox", "owl")
IGNORED = 255


def random_pair(num_classes, noise, ignored=0.1):
    height, width = RNG.integers(3, 9, 2)
    truth = RNG.integers(0, num_classes, (height, width))
    guess = np.where(RNG.random(truth.shape) < noise, RNG.integers(0, num_classes), truth)
    truth = np.where(RNG.random(truth.shape) < ignored, IGNORED, truth)
    return guess.astype(np.uint8), truth


def by_loops(pairs, num_classes):
    """Mean IoU, pixel accuracy, mean class accuracy and IoUs, a pixel at a time."""
    both, either, true = [0] * num_classes, [0] * num_classes, [0] * num_classes
    right = total = 0
    for guess, truth in pairs:
        for row in range(truth.shape[0]):
            for column in range(truth.shape[1]):
                said, is_ = int(guess[row, column]), int(truth[row, column])
                if is_ == IGNORED:
                    continue
                total, right = total + 1, right + (said == is_)
                true[is_] += 1
                for number in range(num_classes):
                    both[number] += said == number and is_ == number
                    either[number] += number in (said, is_)
    ious = {k: both[k] / either[k] for k in range(num_classes) if either[k]}
    shares = [both[k] / true[k] for k in range(num_classes) if true[k]]
    return sum(ious.values()) / len(ious), right / total, sum(shares) / len(shares), ious


def metric_of(pairs, num_classes):
    metric = SegmentationMetric(
        {i: (lambda truth=truth: truth) for i, (_, truth) in enumerate(pairs)},
        NAMES[:num_classes],
        ignored=IGNORED,
    )
    for rows in np.array_split(RNG.permutation(len(pairs)), min(3, len(pairs))):
        scores = {"mask": [pairs[i][0] for i in rows]}
        metric.update(Predictions(index=rows.tolist(), scores=scores))
    return {value.name: value for value in metric.compute()}


@pytest.mark.parametrize("noise", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_random_masks(num_classes, noise):
    pairs = [random_pair(num_classes, noise) for _ in range(7)]
    found = metric_of(pairs, num_classes)
    miou, pixels, classes, ious = by_loops(pairs, num_classes)
    assert found["miou"].value == pytest.approx(miou)
    assert found["pixel_accuracy"].value == pytest.approx(pixels)
    assert found["class_accuracy"].value == pytest.approx(classes)
    for number, iou in ious.items():
        assert found[f"iou/{NAMES[number]}"].value == pytest.approx(iou)
    for value in found.values():
        assert value.low <= value.value + 1e-9 or value.name.startswith("iou/")
        assert value.num_items == 7
        assert 0 <= value.low <= value.high <= 1
    blind = [(np.full_like(t, most_frequent(pairs)), t) for _, t in pairs]
    assert found["miou_majority"].value == pytest.approx(by_loops(blind, num_classes)[0])


def most_frequent(pairs):
    values = np.concatenate([truth.ravel() for _, truth in pairs])
    return np.bincount(values[values != IGNORED]).argmax()


def test_classes_that_never_occur_are_in_no_mean_and_false_alarms_are():
    truth = np.zeros((2, 4), dtype=int)
    never = metric_of([(truth.astype(np.uint8), truth)], 3)
    assert never["miou"].value == 1.0
    assert "iou/cat" not in never
    alarm = truth.astype(np.uint8).copy()
    alarm[0, 0] = 1
    found = metric_of([(alarm, truth)], 3)
    assert found["iou/cat"].value == 0.0
    assert found["miou"].value == pytest.approx((7 / 8 + 0) / 2)
    assert found["class_accuracy"].value == pytest.approx(7 / 8)


def test_intersections_are_summed_before_they_are_divided():
    """A mean over images would be (1 + 0) / 2; 9 of 10 pixels are right."""
    large, small = np.ones((3, 3), dtype=int), np.ones((1, 1), dtype=int)
    pairs = [(large.astype(np.uint8), large), (np.zeros((1, 1), dtype=np.uint8), small)]
    found = metric_of(pairs, 2)
    assert found["iou/cat"].value == pytest.approx(9 / 10)
    assert found["pixel_accuracy"].value == pytest.approx(9 / 10)


def test_of_equally_frequent_classes_the_first_is_the_blind_guess():
    truth = np.array([[0, 1]])
    found = metric_of([(np.array([[0, 0]], dtype=np.uint8), truth)], 2)
    assert "ground, everywhere" in found["miou_majority"].protocol
    assert found["miou_majority"].value == found["miou"].value == pytest.approx(0.25)


def test_what_cannot_be_scored_is_named():
    empty = np.zeros((2, 2), dtype=np.uint8)
    with pytest.raises(DataError, match="every pixel of these masks is ignored"):
        metric_of([(empty, np.full((2, 2), IGNORED))], 2)
    with pytest.raises(DataError, match="shape"):
        count_areas(empty, np.zeros((2, 3), dtype=int), 2, IGNORED)
    with pytest.raises(DataError, match="outside 0 to 1"):
        count_areas(empty, np.full((2, 2), 2), 2, IGNORED)
    metric = SegmentationMetric({0: lambda: empty}, NAMES, ignored=IGNORED)
    with pytest.raises(CapabilityError, match="predicts no masks"):
        metric.update(Predictions(index=[0]))
    with pytest.raises(DataError, match="no prediction"):
        metric.compute()
    nothing = segmentation.mean_iou_from_areas(np.zeros((3, 4)))
    assert math.isnan(float(nothing))
