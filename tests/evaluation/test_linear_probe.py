"""The probe against scikit-learn's numbers, and its sweep against trying every C."""

import math

import numpy as np
import pytest
import torch

from triptych.core.errors import DataError
from triptych.evaluation import linear_probe
from triptych.evaluation.linear_probe import c_at, fit_probe, sweep_probe

# scikit-learn 1.9.1, LogisticRegression(C=..., tol=1e-12, max_iter=100000) on `waves()`.
SKLEARN = {
    0.01: (
        [
            [-0.06981235, -0.08141264, -0.01030512, 0.072387],
            [0.00939332, 0.01863678, 0.00457712, -0.01751344],
            [0.06041903, 0.06277586, 0.005728, -0.05487356],
        ],
        [-0.08150857, 0.52038959, -0.43888102],
    ),
    1.0: (
        [
            [-0.35861345, -0.82583688, -0.13884771, 0.68294371],
            [-0.22124311, 0.05572964, 0.02327217, -0.21483194],
            [0.57985656, 0.77010724, 0.11557554, -0.46811177],
        ],
        [-0.14118845, 0.85620301, -0.71501455],
    ),
    100.0: (
        [
            [-0.07134849, -1.17520029, -0.03820358, 0.9918097],
            [-0.45675665, 0.04153796, 0.04535987, -0.42042269],
            [0.52810514, 1.13366234, -0.00715629, -0.57138701],
        ],
        [-0.14627924, 0.98149431, -0.83521507],
    ),
}


def waves():
    i = np.arange(60)
    columns = [np.sin(0.7 * i + j) + 0.3 * np.cos(1.3 * i * (j + 1)) for j in range(4)]
    labels = (np.sin(0.7 * i) * 2 + np.cos(2.1 * i) > 0.4).astype(int)
    labels += (np.sin(0.3 * i) > 0.2).astype(int)
    return torch.tensor(np.stack(columns, 1)), torch.tensor(labels)


@pytest.mark.parametrize("c", SKLEARN)
def test_weights_are_those_of_scikit_learn(c):
    features, labels = waves()
    probe = fit_probe(features, labels, c=c, num_classes=3)
    weight, bias = (torch.tensor(values, dtype=torch.float64) for values in SKLEARN[c])
    torch.testing.assert_close(probe.weight, weight, atol=2e-5, rtol=0)
    torch.testing.assert_close(probe.bias, bias, atol=2e-5, rtol=0)
    assert probe.gradient <= linear_probe.TOLERANCE


def test_two_points_by_hand():
    """x = ±1, one of each class: by symmetry the biases are equal and w = w1 - w0 = 2·w1.

    C·2·log(1 + e^-w) + ½·(w²/2) has its minimum where w/2 = 2C·σ(-w).
    """
    probe = fit_probe(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), c=0.5, num_classes=2)
    w = float(probe.weight[1] - probe.weight[0])
    assert w / 2 == pytest.approx(2 * 0.5 / (1 + math.exp(w)), abs=1e-6)
    assert float((probe.bias[1] - probe.bias[0]).abs()) < 1e-6


def test_the_start_does_not_matter():
    features, labels = waves()
    far = fit_probe(features, labels, c=1e4, num_classes=3)
    again = fit_probe(features, labels, c=1.0, num_classes=3, start=far)
    fresh = fit_probe(features, labels, c=1.0, num_classes=3)
    torch.testing.assert_close(again.weight, fresh.weight, atol=2e-5, rtol=0)


def test_a_class_without_a_row_is_never_predicted():
    features, labels = waves()
    probe = fit_probe(features.float(), labels, c=1.0, num_classes=5)
    assert probe.weight.shape == (5, 4)
    assert set(probe.predict(features).tolist()) <= {0, 1, 2}
    right = (probe.predict(features) == labels).sum() / 60
    assert probe.accuracy(features, labels) == pytest.approx(float(right))


def test_the_sweep_finds_a_c_that_trying_all_finds(monkeypatch):
    """Accuracy on validation rises to one place and falls after it: the search must end there."""
    fits = []

    class Fake:
        def __init__(self, c):
            self.c = c

        def accuracy(self, features, labels):
            return -abs(math.log10(self.c) - 1.3)

    def fake_fit(features, labels, *, c, **settings):
        fits.append(c)
        probe = Fake(c)
        probe.weight = probe.bias = torch.zeros(1)
        probe.gradient = 0.0
        return probe

    monkeypatch.setattr(linear_probe, "fit_probe", fake_fit)
    split = (torch.zeros(3, 2), torch.tensor([0, 1, 0]))
    found = sweep_probe(split, split, num_classes=2)
    every = [c_at(place) for place in range(97)]
    assert found.c == min(every, key=lambda c: abs(math.log10(c) - 1.3))
    assert fits[:7] == pytest.approx([1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6])
    assert len(fits) == len(found.scores) + 1 == 7 + 4 * 2 + 1  # and one on both splits


def test_the_sweep_takes_the_strongest_penalty_of_equals_and_fits_on_both():
    features, labels = waves()
    train, validation = (features[:30], labels[:30]), (features[30:], labels[30:])
    found = sweep_probe(train, validation, num_classes=3)
    best = max(found.scores.values())
    assert found.c == min(c for c, score in found.scores.items() if score == best)
    plain = fit_probe(features, labels, c=found.c, num_classes=3)
    torch.testing.assert_close(found.weight, plain.weight, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "at least one row"),
        (torch.zeros(2, 2), torch.zeros(3, dtype=torch.int64), "2 rows and 3 labels"),
        (torch.tensor([[float("nan")]]), torch.tensor([0]), "not finite"),
        (torch.zeros(2, 2), torch.tensor([0, 3]), "labels from 0 to 3"),
    ],
)
def test_unusable_data_are_named(features, labels, message):
    with pytest.raises(DataError, match=message):
        fit_probe(features, labels, c=1.0, num_classes=2)


@pytest.mark.parametrize("c", [1e-6, 1e-3, 1e3, 1e6])
def test_every_strength_of_the_penalty_converges_from_anywhere(c):
    """The optimum's gradient in plain numpy is zero, also from weights of another strength."""
    features, labels = waves()
    far = fit_probe(features, labels, c=1e6 if c < 1 else 1e-6, num_classes=3)
    probe = fit_probe(features, labels, c=c, num_classes=3, start=far)
    x, y = features.numpy(), np.eye(3)[labels.numpy()]
    scores = x @ probe.weight.numpy().T + probe.bias.numpy()
    shares = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    by_weight = (shares - y).T @ x + probe.weight.numpy() / c
    assert np.abs(by_weight).max() < 1e-6 * max(60, 60 / math.sqrt(c * 60))
    assert np.abs((shares - y).mean(0)).max() < 1e-6
