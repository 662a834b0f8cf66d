"""Chance values against hand-worked entropies."""

import json
import math

import pytest
import torch

from triptych.train.chance import ITM_CHANCE, Chance, LabelCounts


def test_chance_values_are_the_entropies_of_the_labels():
    assert Chance(columns=True).value(64) == pytest.approx(math.log(64))
    assert Chance(outputs=8192).value(0) == pytest.approx(math.log(8192))
    assert ITM_CHANCE.value(0) == pytest.approx(math.log(3) / 3 + 2 / 3 * math.log(1.5))
    assert Chance(columns=True).value(0) is None
    assert Chance(labels="label").value(9, LabelCounts()) is None


def test_counted_labels_give_their_entropy_without_the_bias_of_few():
    counts = LabelCounts()
    counts.add(torch.tensor([0, 0, 7, 7]), 2)
    counts.add(torch.tensor([0, 0, 7, 7]), 2)
    assert counts.entropy() == pytest.approx(math.log(2) + 1 / 16)  # Miller: (2 - 1) / (2 · 8)
    restored = LabelCounts()
    restored.load_state(json.loads(json.dumps(counts.state())))
    restored.add(torch.tensor([9]), 1)
    counts.add(torch.tensor([9]), 1)
    assert restored.state() == counts.state() and restored.total == 9


def test_labels_are_read_as_the_loss_reads_them():
    batch = {
        "ids": torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]),
        "mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool(),
        "labels": torch.tensor([[-100, 4], [-100, -100]]),
        "score": torch.tensor([0.5]),
    }
    found, rows = Chance(labels="ids", mask="mask", skip=1).read(batch)
    assert found.tolist() == [5, 6, 3, 7, 3] and rows == 2
    assert Chance(labels="labels").read(batch)[0].tolist() == [4]
    assert Chance(labels="absent").read(batch) is None
    assert Chance(labels="score").read(batch) is None


def test_a_summed_loss_has_the_chance_of_all_labels_of_a_row():
    counts = LabelCounts()
    counts.add(torch.tensor([1, 2] * 300), 200)  # three labels a row
    mean = Chance(labels="x").value(0, counts)
    assert Chance(labels="x", summed=True).value(0, counts) == pytest.approx(3 * mean)
