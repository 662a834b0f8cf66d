"""Nearest-neighbour probe of frozen features, with DINO's weights (Caron et al. 2021).

Features are normalised; each of the k training rows with the highest cosine votes for its class
with the weight exp(cosine / 0.07). k is chosen on a validation split among DINO's four values, and
then both splits are searched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.evaluation.linear_probe import check_rows

NUM_NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
CELLS_AT_ONCE = 20_000_000  # of a block of similarities


@dataclass(frozen=True, slots=True)
class NearestProbe:
    """Training rows that are searched.

    Attributes:
        bank: (N, D) features of length 1.
        labels: (N,) int64 in [0, C).
        num_classes: Classes C.
        k: How many neighbours vote; all rows where there are fewer.
        scores: Validation accuracy by k, in the order tried; empty without a choice.
    """

    bank: Tensor
    labels: Tensor
    num_classes: int
    k: int
    scores: dict[int, float]

    def votes(self, features: Tensor) -> Tensor:
        """Return (M, C) float32 sums of the votes for each class, for (M, D) features.

        Of equally similar rows any may be among the k.
        """
        queries = F.normalize(features.float(), dim=1)
        k = min(self.k, len(self.bank))
        found = []
        for part in torch.split(queries, max(1, CELLS_AT_ONCE // len(self.bank))):
            cosines, rows = (part @ self.bank.T).topk(k, dim=1)
            # Weights relative to the nearest: exp(1 / 0.07) is large, and the best class is equal.
            weights = ((cosines - cosines[:, :1]) / TEMPERATURE).exp()
            votes = weights.new_zeros(len(part), self.num_classes)
            found.append(votes.scatter_add_(1, self.labels[rows], weights))
        return torch.cat(found) if found else self.bank.new_zeros(0, self.num_classes)

    def predict(self, features: Tensor) -> Tensor:
        """Return (M,) int64 classes of (M, D) features; of equal votes the first class."""
        return self.votes(features).argmax(dim=1)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Return the share of (M, D) features whose class is right."""
        return float((self.predict(features) == labels).double().mean())


def build_nearest(features: Tensor, labels: Tensor, *, k: int, num_classes: int) -> NearestProbe:
    """Return a probe that searches (N, D) features with (N,) labels.

    Raises:
        DataError: There is no row, a feature is not finite, or a label is out of range.
    """
    check_rows(features, labels, num_classes)
    return NearestProbe(F.normalize(features.float(), dim=1), labels, num_classes, k, {})


def choose_nearest(
    train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], *, num_classes: int
) -> NearestProbe:
    """Choose k on a validation split, and search both splits.

    Values above the number of training rows are not tried, but for the smallest. Of several k with
    the best accuracy the smallest counts.

    Args:
        train: (N, D) features and (N,) labels.
        validation: (M, D) features and (M,) labels.
        num_classes: Classes C.

    Raises:
        DataError: A split is empty, a feature is not finite, or a label is out of range.
    """
    check_rows(*validation, num_classes)
    tried = [k for k in NUM_NEIGHBOURS if k <= len(train[0])] or [NUM_NEIGHBOURS[0]]
    scores = {
        k: build_nearest(*train, k=k, num_classes=num_classes).accuracy(*validation) for k in tried
    }
    best = max(tried, key=lambda k: scores[k])
    both = torch.cat([train[0], validation[0]]), torch.cat([train[1], validation[1]])
    found = build_nearest(*both, k=best, num_classes=num_classes)
    return NearestProbe(found.bank, found.labels, num_classes, best, scores)
