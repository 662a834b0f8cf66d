"""Masked image modelling on paper, with nothing hidden, and its gradients."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from triptych.objectives import IGNORE_INDEX
from triptych.objectives.mim import code_labels, mim_accuracy, mim_loss


def test_labels_are_the_codes_of_hidden_patches_and_the_codes_stay():
    codes = torch.tensor([[[7, 8], [9, 6]]])
    hidden = torch.tensor([[True, False, False, True]])
    labels = code_labels(codes, hidden)
    assert labels.tolist() == [[7, IGNORE_INDEX, IGNORE_INDEX, 6]]
    assert codes.flatten().tolist() == [7, 8, 9, 6]


def test_loss_on_paper():
    # hidden: -ln(3/4) and ln 2; the seen patch is named wrongly and counts nothing
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0], [9.0, -9.0]]])
    labels = torch.tensor([[1, 0, IGNORE_INDEX]])
    expected = torch.tensor((math.log(4 / 3) + math.log(2.0)) / 2)
    torch.testing.assert_close(mim_loss(logits, labels), expected)


def test_hidden_patches_alone_give_the_same_loss_as_all():
    torch.manual_seed(0)
    logits, codes = torch.randn(3, 4, 6), torch.randint(6, (3, 4))
    hidden = torch.rand(3, 4) < 0.5
    some = mim_loss(logits[hidden], codes[hidden])
    torch.testing.assert_close(mim_loss(logits, code_labels(codes, hidden)), some)


def test_order_of_the_batch_changes_nothing():
    torch.manual_seed(0)
    logits, codes = torch.randn(5, 4, 6), torch.randint(6, (5, 4))
    order = torch.randperm(5)
    torch.testing.assert_close(mim_loss(logits[order], codes[order]), mim_loss(logits, codes))


@pytest.mark.parametrize("alone", [True, False])
def test_nothing_hidden_gives_a_loss_and_gradients_of_zero(alone):
    head = torch.nn.Linear(3, 5)
    states = torch.randn(2, 4, 3, requires_grad=True)
    codes, hidden = torch.randint(5, (2, 4)), torch.zeros(2, 4, dtype=torch.bool)
    if alone:
        loss = mim_loss(head(states[hidden]), codes[hidden])
    else:
        loss = mim_loss(head(states), code_labels(codes, hidden))
    assert loss.item() == 0
    loss.backward()
    for tensor in (states, head.weight, head.bias):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_gradient():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, IGNORE_INDEX, 0], [3, 2, IGNORE_INDEX]])

    def loss(x):  # the loss itself is computed in float32
        picked = torch.log_softmax(x, -1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        return -(picked * (labels >= 0)).sum() / 4

    assert gradcheck(loss, logits)
    mine = torch.autograd.grad(mim_loss(logits, labels), logits)[0]
    theirs = torch.autograd.grad(loss(logits), logits)[0]
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def test_accuracy_counts_hidden_patches_alone():
    logits = torch.eye(4)[None]  # names codes 0, 1, 2, 3
    labels = torch.tensor([[0, 3, IGNORE_INDEX, 3]])
    assert mim_accuracy(logits, labels).item() == pytest.approx(2 / 3)
    assert mim_accuracy(logits, torch.full((1, 4), IGNORE_INDEX)).item() == 0
