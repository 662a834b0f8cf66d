"""Spread of embeddings on hand-worked cases; what queue and teacher tell."""

import pytest
import torch
from torch import nn

from triptych.objectives.feature_queue import FeatureQueue
from triptych.objectives.momentum import MomentumEncoder
from triptych.objectives.vitals import PairWatch, spread_of


def test_equal_rows_have_cosine_1_and_no_rank():
    cosine, rank = spread_of(torch.tensor([0.6, 0.8]).expand(5, 2))
    assert cosine.item() == pytest.approx(1.0) and rank.item() == pytest.approx(0.0, abs=1e-4)


def test_orthogonal_rows_have_cosine_0_and_full_rank():
    cosine, rank = spread_of(torch.eye(6))
    assert cosine.item() == pytest.approx(0.0, abs=1e-6)
    assert rank.item() == pytest.approx(5.0, rel=1e-4)  # five equal eigenvalues of the covariance


@pytest.mark.parametrize("repeats", [1, 4])
def test_opposite_rows_lie_on_a_line(repeats):
    cosine, rank = spread_of(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat(repeats, 1))
    pairs = 2 * repeats
    assert cosine.item() == pytest.approx(-1 / (pairs - 1), abs=1e-6)
    assert rank.item() == pytest.approx(1.0, rel=1e-4)


def test_a_watch_gives_what_was_noted_once_and_nothing_of_a_validation():
    watch, rows = PairWatch(), torch.eye(4)
    with torch.no_grad():
        watch.note_embeddings(rows, rows)
        watch.note_matches(torch.ones(3, dtype=torch.int64))
    assert watch.take() == {}
    watch.note_embeddings(rows, rows)
    watch.note_matches(torch.tensor([[1, 0, -100], [1, 0, 0]]))
    found = watch.take()
    assert found["share/itm"].item() == pytest.approx(2 / 5)
    assert {name for name in found if name.startswith("embedding/")} == {
        f"embedding/{side}_{what}" for side in ("image", "text") for what in ("cosine", "rank")
    }
    assert watch.take() == {}


def test_a_queue_and_a_teacher_tell_of_each_change():
    queue = FeatureQueue(3, 2)
    told = [queue.vitals()]
    for value in (1.0, 2.0):
        rows = torch.full((2, 2), value)
        queue.push(rows, rows, torch.zeros(2, 2, dtype=torch.int64))
        told.append(queue.vitals())
    assert [t["queue/filled"] for t in told] == [0, 2, 3]
    assert [t["queue/newest"] for t in told] == [0, 2, 4]
    student = nn.Linear(3, 3)
    teacher = MomentumEncoder(student, 0.5)
    assert teacher.vitals(student)["teacher/distance"] == 0
    with torch.no_grad():
        student.weight.mul_(2)
    before = teacher.vitals(student)
    teacher.update(student)
    after = teacher.vitals(student)
    assert before["teacher/norm"] != after["teacher/norm"]
    assert after["teacher/distance"] == pytest.approx(before["teacher/distance"] / 2)
