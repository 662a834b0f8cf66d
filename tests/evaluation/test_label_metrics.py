"""The metrics over batches against the functions over everything, and their intervals."""

import numpy as np
import pytest
import torch

from triptych.core.errors import CapabilityError, DataError
from triptych.core.outputs import Predictions
from triptych.evaluation import classification
from triptych.evaluation.label_metrics import (
    AUROCMetric,
    BinaryMetric,
    CorrelationMetric,
    MeanPerClassMetric,
    TopKMetric,
)

RNG = np.random.default_rng(1)
LABELS = RNG.integers(0, 2, 40)
NOISY = np.where(RNG.random(40) < 0.8, LABELS, 1 - LABELS)
SCORES = LABELS + RNG.normal(size=40)


def fill(metric, **values):
    """Hand predictions over in batches, out of order."""
    order = RNG.permutation(40)
    for rows in np.array_split(order, 3):
        scores = {name: torch.tensor(value)[rows] for name, value in values.items()}
        metric.update(Predictions(index=rows.tolist(), scores=scores))
    return metric.compute()


@pytest.mark.parametrize("kind", ["f1", "matthews"])
def test_a_positive_class(kind):
    metric = BinaryMetric(dict(enumerate(LABELS.tolist())), positive=1, kind=kind)
    (value,) = fill(metric, label=NOISY)
    compute = getattr(classification, f"compute_{kind}")
    assert value.name == kind
    assert value.value == pytest.approx(compute(NOISY == 1, LABELS == 1))
    assert value.low < value.value < value.high <= 1
    assert value.num_items == 40
    assert "class 1" in value.protocol


def test_area_under_the_curve():
    (value,) = fill(AUROCMetric(dict(enumerate(LABELS.tolist())), positive=1), positive=SCORES)
    assert value.value == pytest.approx(classification.compute_auroc(SCORES, LABELS == 1))
    assert value.low < value.value < value.high <= 1
    turned = AUROCMetric(dict(enumerate(LABELS.tolist())), positive=0)
    assert fill(turned, positive=-SCORES)[0].value == pytest.approx(value.value)


def test_correlations():
    truth = dict(enumerate(LABELS.astype(float).tolist()))
    pearson, spearman = fill(CorrelationMetric(truth), value=SCORES)
    assert (pearson.name, spearman.name) == ("pearson", "spearman")
    assert pearson.value == pytest.approx(classification.compute_pearson(SCORES, LABELS))
    assert spearman.value == pytest.approx(classification.compute_spearman(SCORES, LABELS))
    assert pearson.low < pearson.value < pearson.high


def test_what_is_missing_is_said():
    metric = AUROCMetric({0: 1, 1: 0, 2: 1}, positive=1)
    with pytest.raises(CapabilityError, match="predicts no positive"):
        metric.update(Predictions(index=[0], scores={"label": ["a"]}))
    metric.update(Predictions(index=[0, 1], scores={"positive": [0.2, 0.1]}))
    assert "1 of 3 samples skipped" in metric.compute()[0].protocol
    with pytest.raises(DataError, match="twice"):
        metric.update(Predictions(index=[0], scores={"positive": [0.2]}))


def mean_of_classes(predicted, labels):
    """By a loop over classes, as CLIP's evaluation of Caltech-101 and others takes it."""
    shares = []
    for label in dict.fromkeys(labels):
        of_class = [p for p, truth in zip(predicted, labels, strict=True) if truth == label]
        shares.append(sum(p == label for p in of_class) / len(of_class))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("num_classes", [1, 2, 7, 40])
def test_every_class_counts_alike(num_classes):
    labels = RNG.integers(0, num_classes, 40)
    noisy = np.where(RNG.random(40) < 0.6, labels, RNG.integers(0, num_classes + 1, 40))
    metric = MeanPerClassMetric(dict(enumerate(labels.tolist())), "probe")
    (value,) = fill(metric, label=noisy)
    assert value.name == "probe_per_class"
    assert value.value == pytest.approx(mean_of_classes(noisy.tolist(), labels.tolist()))
    assert 0 <= value.low <= value.high <= 1
    assert value.num_items == 40


def test_a_rare_class_weighs_as_much_as_a_frequent_one():
    metric = MeanPerClassMetric({0: "a", 1: "a", 2: "a", 3: "b"}, "x")
    metric.update(Predictions(index=[0, 1, 2, 3], scores={"label": ["a", "a", "a", "a"]}))
    assert metric.compute()[0].value == 0.5


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("tied", [False, True])
def test_the_likeliest_classes(k, tied):
    scores = RNG.integers(0, 3, (40, 8)) if tied else RNG.random((40, 8))
    labels = RNG.integers(0, 9, 40)  # class 8 is unknown to the classifier
    metric = TopKMetric(dict(enumerate(labels.tolist())), range(8), "x", k)
    (value,) = fill(metric, probabilities=scores.astype(np.float64))
    hits = 0
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        order = sorted(range(8), key=lambda number: (-row[number], number))
        hits += label in order[:k]
    assert value.name == f"x_top{k}"
    assert value.value == pytest.approx(hits / 40)


def test_likeliest_classes_need_probabilities():
    metric = TopKMetric({0: "a"}, ["a", "b"], "x")
    with pytest.raises(CapabilityError, match="predicts no probabilities"):
        metric.update(Predictions(index=[0], scores={"label": ["a"]}))
    with pytest.raises(DataError, match="no prediction"):
        metric.compute()
