"""Hard negatives and ITM."""

import math

import pytest
import torch

from triptych.objectives import IGNORE_INDEX
from triptych.objectives.contrastive import positive_pairs
from triptych.objectives.matching import itm_loss, sample_hard_negatives


def test_a_pair_with_the_same_image_or_caption_is_never_drawn():
    torch.manual_seed(0)
    keys = torch.tensor([[1, 10], [1, 11], [2, 10], [3, 12], [4, 13]])
    positives = positive_pairs(keys, keys)
    sim = torch.where(positives, 1e4, torch.randn(5, 5))  # positives are by far the likeliest
    for _ in range(200):
        drawn, has_negative = sample_hard_negatives(sim, positives)
        assert bool(has_negative.all())
        assert not positives[torch.arange(5), drawn].any()


def test_draws_follow_the_softmax_over_negatives():
    torch.manual_seed(0)
    sim = torch.tensor([[5.0, math.log(3.0), 0.0]]).repeat(4000, 1)
    positives = torch.tensor([[True, False, False]]).repeat(4000, 1)
    drawn, _ = sample_hard_negatives(sim, positives)
    share = (drawn == 1).float().mean().item()
    assert share == pytest.approx(0.75, abs=0.03)  # 4 standard deviations of 0.0068


@pytest.mark.parametrize("value", [1e6, -1e6, 3e38])
def test_huge_logits_cannot_break_the_draw(value):
    sim = torch.full((2, 3), value)
    sim[:, 2] = -value
    positives = torch.tensor([[True, False, False], [False, True, False]])
    drawn, has_negative = sample_hard_negatives(sim, positives)
    assert bool(has_negative.all())
    assert not positives[torch.arange(2), drawn].any()


@pytest.mark.parametrize("size", [1, 3])
def test_rows_without_a_negative_say_so(size):
    positives = torch.ones(size, size, dtype=torch.bool)
    positives[0, size - 1] = size == 1
    _, has_negative = sample_hard_negatives(torch.zeros(size, size), positives)
    assert has_negative.tolist() == [size > 1] + [False] * (size - 1)


def test_itm_on_paper():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0], [50.0, -50.0]])
    labels = torch.tensor([1, 0, IGNORE_INDEX])
    expected = torch.tensor((math.log(4 / 3) + math.log(2.0)) / 2)
    torch.testing.assert_close(itm_loss(logits, labels), expected)
    torch.testing.assert_close(itm_loss(logits.flip(0), labels.flip(0)), itm_loss(logits, labels))


def test_itm_without_pairs_is_zero_with_a_zero_gradient():
    logits = torch.randn(2, 2, requires_grad=True)
    loss = itm_loss(logits, torch.full((2,), IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0.0
    assert not logits.grad.any()


def test_huge_itm_logits_stay_finite():
    logits = torch.tensor([[1e5, -1e5]], requires_grad=True)
    loss = itm_loss(logits, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(2e5)
    assert logits.grad.tolist() == [[1.0, -1.0]]
