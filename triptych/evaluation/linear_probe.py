"""Linear probe: logistic regression on frozen features (Radford et al. 2021, appendix A.3).

The weights minimise C · Σ cross-entropy + ½‖W‖² (biases are free), by L-BFGS in float64. C is
chosen on a validation split among 97 values from 1e-6 to 1e6, eight a decade: first seven values
far apart, then around the best with half the distance until neighbours are tried. The classifier
with the best C is fitted on both splits together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.core.errors import DataError

STEPS_PER_DECADE = 8
LOWEST_EXPONENT, HIGHEST_EXPONENT = -6, 6
FIRST_STRIDE = 16  # of 97 values: 1e-6, 1e-4, ..., 1e6
MAX_ITERATIONS = 1000
TOLERANCE = 1e-7  # of the gradient of the mean loss, largest entry


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """A fitted classifier.

    Attributes:
        weight: (C, D) float64.
        bias: (C,) float64.
        c: Inverse strength of the penalty.
        gradient: Largest entry of the gradient of the mean loss where fitting stopped, by biases
            and by weights in units of min(1, √(C·N)).
        scores: Validation accuracy by C, in the order tried; empty without a sweep.
    """

    weight: Tensor
    bias: Tensor
    c: float
    gradient: float
    scores: dict[float, float]

    def logits(self, features: Tensor) -> Tensor:
        """Return (N, C) float64 scores of (N, D) features."""
        return features.to(self.weight) @ self.weight.T + self.bias

    def predict(self, features: Tensor) -> Tensor:
        """Return (N,) int64 classes of (N, D) features."""
        return self.logits(features).argmax(dim=1)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Return the share of (N, D) features whose class is right."""
        return float((self.predict(features) == labels.to(self.weight.device)).double().mean())


def fit_probe(
    features: Tensor,
    labels: Tensor,
    *,
    c: float,
    num_classes: int,
    start: LinearProbe | None = None,
    max_iterations: int = MAX_ITERATIONS,
) -> LinearProbe:
    """Fit a logistic regression.

    Args:
        features: (N, D) of any float type.
        labels: (N,) int64 in [0, num_classes).
        c: Inverse strength of the penalty, above 0.
        num_classes: Classes C, also those that no row has.
        start: Where to begin; zeros if absent. The optimum is the same.
        max_iterations: L-BFGS iterations at most.

    Raises:
        DataError: There is no row, a feature is not finite, or a label is out of range.
    """
    check_rows(features, labels, num_classes)
    x = features.detach().double()
    y = labels.to(x.device)
    width = x.shape[1]
    scale = min(1.0, math.sqrt(c * len(x)))  # W = scale · table: a strong penalty stays round
    table = x.new_zeros(num_classes, width + 1)  # bias last
    if start is not None:
        table = torch.cat([start.weight / scale, start.bias[:, None]], dim=1).to(x)
    table.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [table],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=TOLERANCE,
        tolerance_change=1e-14,  # where float64 cannot go on
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        weight, bias = scale * table[:, :width], table[:, width]
        penalty = weight.square().sum() / (2 * c * len(x))
        value = F.cross_entropy(x @ weight.T + bias, y) + penalty
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
        loss()
    assert table.grad is not None
    found = table.detach()
    weight, bias = scale * found[:, :width], found[:, width].clone()
    return LinearProbe(weight, bias, c, float(table.grad.abs().max()), {})


def sweep_probe(
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    *,
    num_classes: int,
    max_iterations: int = MAX_ITERATIONS,
) -> LinearProbe:
    """Choose C on a validation split and fit on both splits.

    Of several C with the best accuracy the smallest counts: the strongest penalty.

    Args:
        train: (N, D) features and (N,) labels.
        validation: (M, D) features and (M,) labels.
        num_classes: Classes C.
        max_iterations: L-BFGS iterations at most, for each fit.

    Raises:
        DataError: A split is empty, a feature is not finite, or a label is out of range.
    """
    check_rows(*validation, num_classes)
    scores: dict[int, float] = {}
    last: LinearProbe | None = None

    def score(index: int) -> float:
        nonlocal last
        if index not in scores:
            last = fit_probe(
                *train,
                c=c_at(index),
                num_classes=num_classes,
                start=last,
                max_iterations=max_iterations,
            )
            scores[index] = last.accuracy(*validation)
        return scores[index]

    end = (HIGHEST_EXPONENT - LOWEST_EXPONENT) * STEPS_PER_DECADE
    indices, stride = list(range(0, end + 1, FIRST_STRIDE)), FIRST_STRIDE
    while True:
        best = max(sorted({*indices, *scores}), key=score)
        if stride == 1:
            break
        stride //= 2
        indices = [p for p in (best - stride, best, best + stride) if 0 <= p <= end]
    both = (
        torch.cat([train[0], validation[0]]),
        torch.cat([train[1], validation[1].to(train[1])]),
    )
    final = fit_probe(
        *both, c=c_at(best), num_classes=num_classes, start=last, max_iterations=max_iterations
    )
    tried = {c_at(index): value for index, value in scores.items()}
    return LinearProbe(final.weight, final.bias, final.c, final.gradient, tried)


def c_at(index: int) -> float:
    """Return a value of the sweep: 1e-6 at index 0, 1e6 at index 96."""
    return float(10.0 ** (LOWEST_EXPONENT + index / STEPS_PER_DECADE))


def check_rows(features: Tensor, labels: Tensor, num_classes: int) -> None:
    """Reject features (N, D) and labels (N,) that no probe can be made of.

    Raises:
        DataError: There is no row, a feature is not finite, or a label is out of range.
    """
    if len(features) == 0 or len(features) != len(labels):
        raise DataError(
            f"a probe needs one label for each of at least one row of features, got "
            f"{len(features)} rows and {len(labels)} labels"
        )
    if not bool(torch.isfinite(features).all()):
        raise DataError("a feature is not finite; the model has diverged")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(f"labels from {low} to {high}, but the classes are 0 to {num_classes - 1}")
