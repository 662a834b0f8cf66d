"""The metrics over batches against the functions over everything, and their intervals."""

import numpy as np
import pytest
import torch

from triptych.core.errors import CapabilityError, DataError
from triptych.core.outputs import Predictions
from triptych.evaluation import classification
from triptych.evaluation.label_metrics import AUROCMetric, BinaryMetric, CorrelationMetric

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
