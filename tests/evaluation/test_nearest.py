"""Votes of neighbours against a loop in NumPy, from DINO's evaluation of k-NN."""

import math

import numpy as np
import pytest
import torch

from triptych.core.errors import DataError
from triptych.evaluation import nearest
from triptych.evaluation.nearest import build_nearest, choose_nearest

GENERATOR = torch.Generator().manual_seed(4)


def clusters(number, num_classes, noise, dim=6):
    centers = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(0, num_classes, (number,), generator=GENERATOR)
    spread = noise * torch.randn(number, dim, generator=GENERATOR)
    lengths = 0.1 + 5 * torch.rand(number, 1, generator=GENERATOR)
    return lengths * (centers[labels] + spread), labels


def by_loops(bank, labels, query, k, num_classes):
    """One vote after the other, over cosines in double precision."""
    cosines = []
    for row in bank.double().numpy():
        other = query.double().numpy()
        cosines.append(float(row @ other / np.linalg.norm(row) / np.linalg.norm(other)))
    votes = [0.0] * num_classes
    for place in sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]:
        votes[int(labels[place])] += math.exp(cosines[place] / 0.07)
    return votes


@pytest.mark.parametrize("k", [1, 3, 20, 100])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_votes_of_random_features(k, num_classes):
    bank, labels = clusters(40, num_classes, 1.0)
    queries, _ = clusters(15, num_classes, 1.0)
    probe = build_nearest(bank, labels, k=k, num_classes=num_classes)
    found = probe.votes(queries)
    for row, query in zip(found, queries, strict=True):
        votes = torch.tensor(by_loops(bank, labels, query, k, num_classes))
        torch.testing.assert_close(
            row / row.sum(), (votes / votes.sum()).float(), atol=1e-4, rtol=1e-3
        )


def test_blocks_of_queries_change_nothing(monkeypatch):
    bank, labels = clusters(40, 3, 1.0)
    queries, _ = clusters(15, 3, 1.0)
    probe = build_nearest(bank, labels, k=5, num_classes=3)
    whole = probe.votes(queries)
    monkeypatch.setattr(nearest, "CELLS_AT_ONCE", 81)
    torch.testing.assert_close(probe.votes(queries), whole)


def test_equal_votes_take_the_first_class_and_no_query_gives_none():
    bank = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    probe = build_nearest(bank, torch.tensor([2, 1]), k=2, num_classes=3)
    assert probe.predict(torch.tensor([[3.0, 0.0]])).tolist() == [1]
    assert probe.predict(torch.zeros(0, 2)).tolist() == []


def test_k_is_chosen_on_validation_and_both_splits_are_searched():
    train, validation = clusters(150, 4, 0.9), clusters(60, 4, 0.9)
    found = choose_nearest(train, validation, num_classes=4)
    assert list(found.scores) == [10, 20, 100]
    for k, score in found.scores.items():
        guesses = [int(np.argmax(by_loops(*train, query, k, 4))) for query in validation[0]]
        assert score == pytest.approx(np.mean(np.array(guesses) == validation[1].numpy()))
    best = max(found.scores.values())
    assert found.k == min(k for k, score in found.scores.items() if score == best)
    assert len(found.bank) == 210
    few = choose_nearest((train[0][:4], train[1][:4]), validation, num_classes=4)
    assert list(few.scores) == [10]
    assert few.votes(validation[0]).shape == (60, 4)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "at least one row"),
        (torch.tensor([[float("nan")]]), torch.tensor([0]), "not finite"),
        (torch.zeros(2, 2), torch.tensor([0, 3]), "labels from 0 to 3"),
    ],
)
def test_unusable_data_are_named(features, labels, message):
    with pytest.raises(DataError, match=message):
        build_nearest(features, labels, k=1, num_classes=2)
    with pytest.raises(DataError, match=message):
        choose_nearest((torch.eye(2), torch.tensor([0, 1])), (features, labels), num_classes=2)
