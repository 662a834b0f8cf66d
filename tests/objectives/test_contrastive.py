"""ITC on paper, its invariances and its gradient."""

import math

import pytest
import torch

from triptych.objectives.contrastive import itc_loss, positive_pairs, soft_targets


def test_equal_similarities_cost_ln_of_the_number_of_candidates():
    sims, targets = torch.zeros(3, 5), torch.full((3, 5), 0.2)
    torch.testing.assert_close(itc_loss(sims, sims, targets, targets), torch.tensor(5.0).log())


def test_two_by_two_on_paper():
    # Rows (ln 3, 0): the right one has probability 3/4 and 1/4; columns transposed alike.
    sims = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]])
    targets = torch.eye(2)
    i2t = -(math.log(0.75) + math.log(0.25)) / 2
    t2i = math.log(2.0)  # each column of the matrix holds two equal values
    expected = torch.tensor((i2t + t2i) / 2)
    torch.testing.assert_close(itc_loss(sims, sims.T, targets, targets), expected)


def test_soft_targets_on_paper():
    positives = torch.tensor([[True, False, False], [False, True, True]])
    labels = [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]
    torch.testing.assert_close(soft_targets(positives, None, 0.9), torch.tensor(labels))
    teacher = torch.tensor([[0.0, math.log(2.0), 0.0], [0.0, 0.0, 0.0]])
    mixed = [[0.6 + 0.1, 0.2, 0.1], [0.4 / 3, 0.3 + 0.4 / 3, 0.3 + 0.4 / 3]]
    torch.testing.assert_close(soft_targets(positives, teacher, 0.4), torch.tensor(mixed))
    assert torch.equal(soft_targets(positives, teacher, 0.0), torch.tensor(labels))


def test_positives_share_an_image_or_a_caption():
    rows = torch.tensor([[1, 10], [2, 10], [3, 30]])
    columns = torch.tensor([[1, 10], [2, 20], [9, 30]])
    expected = [[True, False, False], [True, True, False], [False, False, True]]
    assert positive_pairs(rows, columns).tolist() == expected


def test_order_of_the_batch_does_not_matter():
    torch.manual_seed(0)
    image, text = torch.randn(4, 6), torch.randn(4, 6)
    keys = torch.tensor([[1, 5], [1, 6], [2, 7], [3, 8]])

    def loss(order):
        sims = image[order] @ text[order].T
        targets = soft_targets(positive_pairs(keys[order], keys[order]), sims, 0.3)
        targets_t2i = soft_targets(positive_pairs(keys[order], keys[order]), sims.T, 0.3)
        return itc_loss(sims, sims.T, targets, targets_t2i)

    torch.testing.assert_close(loss(torch.tensor([2, 0, 3, 1])), loss(torch.arange(4)))


def test_one_pair_costs_nothing():
    sims, targets = torch.full((1, 1), 14.0), torch.ones(1, 1)
    assert itc_loss(sims, sims, targets, targets).item() == 0.0


def test_huge_similarities_stay_finite():
    sims = (torch.eye(3) * 2e4 - 1e4).requires_grad_()
    loss = itc_loss(sims, sims.T, torch.eye(3).roll(1, 0), torch.eye(3).roll(1, 1))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert bool(sims.grad.isfinite().all())


def test_gradient_is_probabilities_minus_targets():
    torch.manual_seed(0)
    sims = torch.randn(3, 4, requires_grad=True)
    targets = torch.softmax(torch.randn(3, 4), 1)
    itc_loss(sims, torch.zeros(3, 4), targets, targets).backward()
    expected = (torch.softmax(sims.detach(), 1) - targets) / (2 * 3)
    torch.testing.assert_close(sims.grad, expected)
