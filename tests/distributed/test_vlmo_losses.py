"""VLMo's third stage on several gloo processes against one process with the joined batch."""

from unittest import mock

import pytest
import torch
import torch.distributed as dist

from tests.distributed.averaging import average_gradients
from tests.tasks.pretraining.test_vlmo import build, make_batch
from triptych.distributed.collectives import (
    all_gather_padded,
    all_reduce_mean,
    fetch_rows,
)
from triptych.distributed.env import rank, run_processes
from triptych.tasks.pretraining import vlmo

ROWS = 8


def _hardest(sim, positives):
    """Take the most similar candidate: no draw, so the same with any number of processes."""
    return sim.masked_fill(positives, -torch.inf).argmax(dim=1), ~positives.all(dim=1)


def _losses_and_gradients(split, name, active):
    """Return losses and gradients of one step, averaged over processes, of these rows each."""
    task, batch = build(name), make_batch(ROWS, length=9)
    batch["caption_key"][3] = batch["caption_key"][6]  # a caption of two images, far apart
    bounds = [0, *torch.tensor(split).cumsum(0).tolist()]
    own = slice(bounds[rank()], bounds[rank() + 1])
    with mock.patch.object(vlmo, "sample_hard_negatives", _hardest):
        losses = task.losses({key: value[own] for key, value in batch.items()}, active=active)
    torch.stack(list(losses.values())).sum().backward()
    parameters = dict(task.modules.named_parameters())
    average_gradients(list(parameters.values()))
    means = {key: float(all_reduce_mean(loss)) for key, loss in losses.items()}
    return means, {key: p.grad.tolist() for key, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize(
    ("split", "name", "active"),
    [
        ((4, 4), "fused_itc", {"itc"}),
        ((2, 2, 2, 2), "relative", {"itc"}),
        ((4, 4), "relative", {"itc", "itm", "mlm"}),
        ((5, 1, 2), "absolute", {"itc", "itm", "mlm"}),
    ],
)
def test_processes_equal_the_joined_batch(split, name, active):
    expected, expected_gradients = _losses_and_gradients((ROWS,), name, frozenset(active))
    found, gradients = run_processes(
        _losses_and_gradients, len(split), split, name, frozenset(active)
    )
    assert found == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(
            torch.tensor(gradient),
            torch.tensor(expected_gradients[key]),
            atol=1e-5,
            rtol=1e-3,
            msg=key,
        )


def _local_negatives():
    """Return the keys of drawn negatives and the keys of this process's rows."""
    task, batch = build("relative", negatives="local"), make_batch(ROWS)
    own = slice(4 * rank(), 4 * rank() + 4)
    batch = {key: value[own] for key, value in batch.items()}
    embedded = task.embed(
        task.model.image_inputs(batch["image"]),
        task.model.text_inputs(batch["token_ids"]),
        batch["text_mask"],
    )
    found = task.hard_negatives(batch, embedded)
    return len(found.images), int(found.image_index.min()), int(found.image_index.max())


def test_local_negatives_stay_in_the_process():
    fetched, low, high = run_processes(_local_negatives, 2)
    assert fetched == 0
    assert 0 <= low <= high < 4


DRAWN = ([5, 5, 1, 6], [0, 0, 2, 7])
"""Wrong images of the texts of two processes of four rows: 5 and 6 lie on the other one of the
first, 0 and 2 on that of the second; 5 and 0 are drawn twice."""


def _itm_traffic():
    """Return what ITM sends, (collective, rows, numbers a row), and if its images are right."""
    sent, images = [], []
    draws = iter([torch.tensor([(4 * rank() + i + 1) % ROWS for i in range(4)]), DRAWN[rank()]])

    def drawn(sim, positives):
        return torch.as_tensor(next(draws)), ~positives.all(dim=1)

    def spied(name, place):
        original = getattr(dist, name)

        def call(*arguments, **options):
            given = arguments[place]
            if isinstance(given, torch.Tensor):
                rows = len(given) if given.ndim else 1
                sent.append((name, rows, given.numel() // max(rows, 1)))
            return original(*arguments, **options)

        return call

    places = {"all_to_all_single": 1, "all_gather": 1, "all_gather_into_tensor": 1}
    places |= {"all_reduce": 0, "broadcast": 0, "all_to_all": 1, "reduce_scatter_tensor": 1}
    originals = {name: getattr(dist, name) for name in places}
    for name, place in places.items():
        setattr(dist, name, spied(name, place))
    original_draw, vlmo.sample_hard_negatives = vlmo.sample_hard_negatives, drawn
    task, batch = build("relative"), make_batch(ROWS)
    find = task.hard_negatives

    def kept(own, embedded):
        found = find(own, embedded)
        images.append(torch.cat([own["image"], found.images])[found.image_index])
        return found

    task.hard_negatives = kept
    own = slice(4 * rank(), 4 * rank() + 4)
    losses = task.losses({key: value[own] for key, value in batch.items()}, active={"itm"})
    losses["itm"].backward()
    for name, original in originals.items():
        setattr(dist, name, original)
    vlmo.sample_hard_negatives = original_draw
    right = bool(torch.equal(images[0], batch["image"][DRAWN[rank()]]))
    everything = [None, None]
    dist.all_gather_object(everything, (sent, right))
    return everything


def test_matching_moves_the_chosen_images_alone():
    found = run_processes(_itm_traffic, 2)
    pixels = make_batch(1)["image"].numel()
    assert all(right for _, right in found)
    calls = [call for sent, _ in found for call in sent]
    assert {name for name, _, _ in calls} >= {"all_to_all_single", "all_gather"}
    images = [rows for _, rows, width in calls if width >= pixels]
    assert [width for _, rows, width in calls if width >= pixels] == [pixels, pixels]
    assert {name for name, _, width in calls if width >= pixels} == {"all_to_all_single"}
    assert images == [2, 2]  # the first sends 0 and 2, the second 5 and 6, each once


def _fetch():
    sent = []
    exchange = dist.all_to_all_single

    def counted(output, given, *counts):
        sent.append(len(given))
        return exchange(output, given, *counts)

    dist.all_to_all_single = counted
    rows = torch.arange(10.0).view(5, 2, 1) + 100 * rank()
    rows = rows[: 5 - 2 * rank()]  # 5 rows of process 0, 3 of process 1
    wanted = [torch.tensor([6, 0, 6, 2, 7]), torch.empty(0, dtype=torch.int64)][rank()]
    found = fetch_rows(rows, wanted)
    ids = all_gather_padded(torch.full((1, 2 + rank()), 1 + rank()))
    dist.all_to_all_single = exchange
    totals = torch.tensor(sent)
    dist.all_reduce(totals)
    return found.tolist(), ids.tolist(), totals.tolist()


def test_only_wanted_rows_move_and_each_once():
    found, ids, sent = run_processes(_fetch, 2)
    values = [[102.0, 103.0], [0.0, 1.0], [102.0, 103.0], [4.0, 5.0], [104.0, 105.0]]
    assert [[v[0] for v in row] for row in found] == values
    assert ids == [[1, 1, 0], [2, 2, 2]]
    assert sent == [4]  # rows 0, 2, 6 and 7, though 6 was wanted twice


def test_one_process_fetches_from_itself():
    rows = torch.arange(6.0).view(3, 2)
    assert fetch_rows(rows, torch.tensor([2, 0, 2])).tolist() == [[4, 5], [0, 1], [4, 5]]
