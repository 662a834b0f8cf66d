"""Losses and gradients on several gloo processes against one process with the joined batch."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.averaging import average_gradients
from triptych.distributed.collectives import (
    RowExchange,
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


def _wanted():
    return torch.tensor([[6, 0, 6, 2, 7], [1, 5, 1, 0, 0]])  # of 8 rows, 4 of each process


def _exchange():
    """Return fetched values, the gradient of each process's rows, and how many rows were sent."""
    sent = []
    original = dist.all_to_all_single

    def counted(output, given, *counts):
        sent.append(len(given))
        return original(output, given, *counts)

    dist.all_to_all_single = counted
    rows = torch.arange(8.0).view(4, 2, 1).add(100 * rank()).requires_grad_()
    exchange = RowExchange(_wanted(), 4, rows.device)
    found = exchange.extend(rows)[exchange.position]
    (found[:, :, 0] * torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])[:, None]).sum().backward()
    flags = torch.tensor([[True], [False], [rank() == 1], [False]])
    exchanged_flags = exchange.extend(flags)[exchange.position]
    dist.all_to_all_single = original
    result = [None, None]
    own = (found[:, 0, 0].tolist(), rows.grad[:, 0, 0].tolist(), sent, exchanged_flags.tolist())
    dist.all_gather_object(result, own)
    return result


def test_wanted_rows_move_once_and_their_gradients_come_back():
    (first, first_gradient, sent, flags), (other, other_gradient, other_sent, _) = run_processes(
        _exchange, 2
    )
    assert first == [104.0, 0.0, 104.0, 4.0, 106.0]
    assert other == [2.0, 102.0, 2.0, 0.0, 0.0]
    # row 0: wanted by the first with weight 2, by the second with 8 + 16; and so on
    assert first_gradient == [2 + 24.0, 1 + 4.0, 8.0, 0.0]
    assert other_gradient == [0.0, 2.0, 1 + 4.0, 16.0]
    # rows 0 and 1 go to the second, 6 and 7 to the first, though 6 and 0 are wanted twice; then
    # their gradients, which go the other way; then the flags
    assert (sent, other_sent) == ([2, 2, 2], [2, 2, 2])
    assert flags == [[True], [True], [True], [False], [False]]


def test_one_process_has_all_rows():
    rows = torch.arange(6.0).view(3, 2)
    exchange = RowExchange(torch.tensor([[2, 0, 2]]), 3, rows.device)
    assert exchange.extend(rows)[exchange.position].tolist() == [[4, 5], [0, 1], [4, 5]]


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
