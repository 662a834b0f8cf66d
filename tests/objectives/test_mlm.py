"""Token losses on paper, with padding, and their gradients."""

import math

import pytest
import torch

from triptych.objectives import IGNORE_INDEX
from triptych.objectives.mlm import distillation_loss, shift_targets, token_loss


def test_token_loss_on_paper():
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0], [9.0, -9.0]]])
    labels = torch.tensor([[1, 0, IGNORE_INDEX]])
    expected = torch.tensor((math.log(4 / 3) + math.log(2.0)) / 2)
    torch.testing.assert_close(token_loss(logits, labels), expected)


def test_distillation_on_paper():
    # Teacher (3/4, 1/4), student (1/2, 1/2): cross-entropy ln 2. Over the vocabulary, not tokens.
    teacher = torch.tensor([[[math.log(3.0), 0.0], [7.0, 0.0]]])
    student = torch.tensor([[[2.0, 2.0], [1.0, 5.0]]])
    labels = torch.tensor([[0, IGNORE_INDEX]])
    torch.testing.assert_close(distillation_loss(student, teacher, labels), torch.tensor(2.0).log())


def test_a_sure_teacher_equals_labels():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[1, 4, IGNORE_INDEX], [0, 2, 3]])
    teacher = torch.nn.functional.one_hot(labels.clamp(min=0), 5) * 1e4
    torch.testing.assert_close(
        distillation_loss(logits, teacher, labels), token_loss(logits, labels)
    )


@pytest.mark.parametrize("loss", ["token", "distillation"])
def test_unlabelled_positions_change_nothing(loss):
    torch.manual_seed(0)
    logits, teacher = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    labels = torch.tensor([[1, 2, -100, -100], [3, -100, -100, -100]])
    noisy = torch.where(labels[..., None] == IGNORE_INDEX, 1e3 * torch.randn(2, 4, 6), logits)
    order = torch.tensor([1, 0])

    def value(x):
        if loss == "token":
            return token_loss(x, labels)
        return distillation_loss(x, teacher, labels)

    torch.testing.assert_close(value(noisy), value(logits))
    permuted = (
        token_loss(logits[order], labels[order])
        if loss == "token"
        else distillation_loss(logits[order], teacher[order], labels[order])
    )
    torch.testing.assert_close(permuted, value(logits))


@pytest.mark.parametrize("loss", [token_loss, lambda x, y: distillation_loss(x, x.detach(), y)])
def test_no_label_at_all_is_zero_with_a_zero_gradient(loss):
    logits = torch.randn(1, 3, 4, requires_grad=True)
    value = loss(logits, torch.full((1, 3), IGNORE_INDEX))
    value.backward()
    assert value.item() == 0.0
    assert not logits.grad.any()


def test_no_row_at_all_is_zero():
    logits = torch.zeros(0, 4, requires_grad=True)
    value = token_loss(logits, torch.zeros(0, dtype=torch.int64))
    value.backward()
    assert value.item() == 0.0


def test_gradient_is_probabilities_minus_labels_over_their_number():
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 4, requires_grad=True)
    token_loss(logits, torch.tensor([[2, IGNORE_INDEX, 0]])).backward()
    probabilities = torch.softmax(logits.detach(), -1)
    expected = probabilities - torch.tensor([[[0.0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]])
    expected[:, 1] = 0
    torch.testing.assert_close(logits.grad, expected / 2)


def test_huge_logits_stay_finite():
    logits = torch.tensor([[1e5, -1e5]])
    assert token_loss(logits, torch.tensor([1])).item() == pytest.approx(2e5)
    assert distillation_loss(logits, logits, torch.tensor([1])).item() == 0.0


def test_targets_are_shifted_by_one():
    ids = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    inputs, labels = shift_targets(ids, mask)
    assert inputs.tolist() == [[2, 7, 8], [2, 9, 3]]
    assert labels.tolist() == [[7, 8, 3], [9, 3, IGNORE_INDEX]]
