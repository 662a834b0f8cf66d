"""DINO's loss against a loop over pairs of crops in NumPy, and its teacher's pieces on paper."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from triptych.objectives.dino import (
    dino_loss,
    moved_center,
    teacher_distribution,
    teacher_momentum,
)


def softmax(x):
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def loop_loss(student, teacher_probs, temperature):
    """Sum -p·ln q over images and pairs of different crops, and divide by how many there are."""
    terms = []
    for g, target in enumerate(teacher_probs):
        for c, logits in enumerate(student):
            if c == g:
                continue
            for p, x in zip(target, logits):
                terms.append(-(p * np.log(softmax(x / temperature))).sum())
    return np.mean(terms)


@pytest.mark.parametrize(("large", "crops"), [(2, 2), (2, 6), (1, 3)])
def test_loss_equals_a_loop_over_pairs(large, crops):
    torch.manual_seed(0)
    student = torch.randn(crops, 3, 5)
    probs = torch.softmax(torch.randn(large, 3, 5), -1)
    expected = loop_loss(student.double().numpy(), probs.double().numpy(), 0.1)
    assert dino_loss(student, probs, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_loss_is_exact_under_autocast():
    torch.manual_seed(0)
    student, probs = torch.randn(4, 3, 1024) / 100, torch.full((2, 3, 1024), 1 / 1024)
    with torch.autocast("cpu", torch.bfloat16):
        found = dino_loss(student, probs, 0.1)
    assert found.item() == pytest.approx(dino_loss(student, probs, 0.1).item(), rel=1e-6)


def test_loss_on_paper():
    # one image, two large crops: the teacher is sure, the student undecided between two classes
    student = torch.zeros(2, 1, 2)
    teacher = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert dino_loss(student, teacher, 0.1).item() == pytest.approx(math.log(2))


def test_a_crop_is_not_compared_with_itself():
    torch.manual_seed(0)
    student = torch.randn(2, 1, 4, requires_grad=True)
    teacher = torch.zeros(2, 1, 4)
    teacher[0, 0, 0] = 1  # only the first crop has a target: only the second crop learns
    dino_loss(student, teacher, 1.0).backward()
    assert not student.grad[0].any()
    assert student.grad[1].any()


def test_order_of_images_changes_nothing():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 6, 3), torch.softmax(torch.randn(2, 6, 3), -1)
    order = torch.randperm(6)
    shuffled = dino_loss(student[:, order], teacher[:, order], 0.1)
    torch.testing.assert_close(shuffled, dino_loss(student, teacher, 0.1))


def test_gradient():
    torch.manual_seed(0)
    student = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.softmax(torch.randn(2, 2, 4, dtype=torch.float64), -1)

    def double_loss(x):
        log_probs = torch.log_softmax(x / 0.5, -1)
        pairs = [(g, c) for g in range(2) for c in range(3) if c != g]
        terms = [-(teacher[g] * log_probs[c]).sum(-1).mean() for g, c in pairs]
        return torch.stack(terms).mean()

    assert gradcheck(double_loss, student)
    mine = torch.autograd.grad(dino_loss(student, teacher, 0.5), student)[0]
    theirs = torch.autograd.grad(double_loss(student), student)[0]
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def test_teacher_on_paper():
    logits = torch.tensor([[1.0, 1.0 + 0.1 * math.log(3.0)]], requires_grad=True)
    found = teacher_distribution(logits, torch.tensor([1.0, 1.0]), 0.1)
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.75]]))
    assert not found.requires_grad
    # a center that equals the outputs leaves no preference: no class wins for all images
    even = teacher_distribution(logits, logits[0].detach(), 0.1)
    torch.testing.assert_close(even, torch.tensor([[0.5, 0.5]]))


def test_center_on_paper():
    logits = torch.tensor([[[1.0, 0.0]], [[3.0, 2.0]]])  # mean (2, 1)
    found = moved_center(torch.tensor([0.0, 10.0]), logits, 0.9)
    torch.testing.assert_close(found, torch.tensor([0.2, 9.1]))


def test_momentum_rises_to_one_along_a_cosine():
    values = [teacher_momentum(step, 100, 0.996) for step in (0, 50, 100, 150)]
    assert values == pytest.approx([0.996, 0.998, 1.0, 1.0])
