"""Losses and gradients on several gloo processes against one process with the joined batch."""

import pytest
import torch
from torch import nn

from tests.distributed.averaging import average_gradients
from triptych.distributed.collectives import (
    all_gather_with_grad,
    all_reduce_mean,
    mean_over_ranks,
    share_state,
)
from triptych.distributed.env import rank, run_processes, world_size
from triptych.objectives.contrastive import itc_loss, similarity, soft_targets

ROWS = 8


def _networks():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"image": nn.Linear(5, 4), "text": nn.Linear(6, 4), "unused": nn.Linear(2, 2)}
    )


def _inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, 5, generator=generator), torch.randn(ROWS, 6, generator=generator)


def _contrastive(image, text, scale, own):
    """The loss of the rows `own` against all columns, as an independent formula."""
    logits = image @ text.T * scale
    rows = torch.arange(len(image))
    i2t = torch.logsumexp(logits, 1)[own] - logits[rows, rows][own]
    t2i = torch.logsumexp(logits, 0)[own] - logits[rows, rows][own]
    return (i2t.mean() + t2i.mean()) / 2


def _loss_and_gradients(split, whole_loss):
    """Train one step's backward on this process's rows; return the loss and all gradients."""
    networks, scale = _networks(), nn.Parameter(torch.tensor(2.0))
    image, text = _inputs()
    bounds = [0, *torch.tensor(split).cumsum(0).tolist()]
    own = slice(bounds[rank()], bounds[rank() + 1])
    normalise = nn.functional.normalize
    image_columns = all_gather_with_grad(normalise(networks["image"](image[own])))
    text_columns = all_gather_with_grad(normalise(networks["text"](text[own])))
    rows = slice(None) if whole_loss else own
    loss = _contrastive(image_columns, text_columns, scale, rows)
    loss.backward()
    parameters = [scale, *networks.parameters()]
    average_gradients(parameters)
    gradients = [None if p.grad is None else p.grad.tolist() for p in parameters]
    return float(all_reduce_mean(loss)), gradients


@pytest.mark.parametrize("whole_loss", [True, False])
@pytest.mark.parametrize("split", [(4, 4), (2, 2, 2, 2)])
def test_gathered_contrastive_loss_equals_the_joined_batch(split, whole_loss):
    loss, gradients = run_processes(_loss_and_gradients, len(split), split, whole_loss)
    expected_loss, expected = _loss_and_gradients((ROWS,), True)
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    assert gradients[-1] is None and expected[-1] is None  # a layer that nobody used stays so
    for ours, theirs in zip(gradients, expected, strict=True):
        if theirs is not None:
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=1e-6, rtol=0)


def test_processes_may_give_different_numbers_of_rows_to_a_whole_loss():
    loss, gradients = run_processes(_loss_and_gradients, 2, (5, 3), True)
    expected_loss, expected = _loss_and_gradients((ROWS,), True)
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    torch.testing.assert_close(
        torch.tensor(gradients[1]), torch.tensor(expected[1]), atol=1e-6, rtol=0
    )


def _unequal_mean():
    weight = nn.Parameter(torch.tensor(3.0))
    items = torch.tensor([[1.0, 2.0, 6.0], [5.0, 0.0, 0.0]])[rank()]
    count = torch.tensor([3, 1])[rank()]
    mean = mean_over_ranks((weight * items).sum(), count)
    mean.backward()
    average_gradients([weight])
    return float(all_reduce_mean(mean.detach())), float(weight.grad)


def test_a_mean_counts_every_item_once_however_unequally_they_are_spread():
    # (1 + 2 + 6 + 5) / 4 = 3.5, times the weight 3
    assert run_processes(_unequal_mean, 2) == (10.5, 3.5)


def test_a_mean_over_nothing_is_zero_with_a_graph():
    weight = nn.Parameter(torch.tensor(3.0))
    mean = mean_over_ranks(weight * 0, torch.tensor(0))
    mean.backward()
    assert (mean.item(), weight.grad.item()) == (0.0, 0.0)


def _shared():
    torch.manual_seed(rank())
    module = nn.BatchNorm1d(3)
    nn.init.normal_(module.weight)
    share_state(module)
    return [
        all_reduce_mean(p).sub(p).abs().sum().item()
        for p in module.state_dict().values()
        if p.is_floating_point()
    ], world_size()


def test_shared_state_is_that_of_rank_0():
    assert run_processes(_shared, 2) == ([0.0] * 4, 2)


def test_gathered_itc_of_the_library_equals_the_formula():
    image, text = (nn.functional.normalize(x[:, :4]) for x in _inputs())
    sims = similarity(image, text, torch.tensor(0.5))
    targets = soft_targets(torch.eye(ROWS, dtype=torch.bool), None, 0.0)
    expected = _contrastive(image, text, 2.0, slice(None))
    torch.testing.assert_close(itc_loss(sims, sims.T, targets, targets), expected)
