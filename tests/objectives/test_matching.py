"""Hard negatives and ITM."""

import math

import pytest
import torch

from triptych.core.rng import seed_step
from triptych.distributed.collectives import all_gather
from triptych.distributed.env import rank, run_processes, world_size
from triptych.objectives import IGNORE_INDEX, matching
from triptych.objectives.contrastive import positive_pairs
from triptych.objectives.matching import itm_loss, sample_hard_negatives

ONE = torch.tensor(1.0)


def draw(logits, keys, column_keys=None, **options):
    """Draw by any logits: those of embeddings whose candidates are unit vectors."""
    candidates = torch.eye(logits.shape[1])
    return sample_hard_negatives(
        logits, candidates, ONE, keys, keys if column_keys is None else column_keys, **options
    )


@pytest.mark.parametrize("tile", [2, 100])
def test_a_pair_with_the_same_image_or_caption_is_never_drawn(tile):
    torch.manual_seed(0)
    keys = torch.tensor([[1, 10], [1, 11], [2, 10], [3, 12], [4, 13]])
    positives = positive_pairs(keys, keys)
    sim = torch.where(positives, 1e4, torch.randn(5, 5))  # positives are by far the likeliest
    for step in range(200):
        seed_step(0, step, 0)
        drawn, has_negative = draw(sim, keys, tile=tile)
        assert bool(has_negative.all())
        assert not positives[torch.arange(5), drawn].any()


@pytest.mark.parametrize("tile", [1, 2, 3, 100])
def test_draws_follow_the_softmax_over_negatives(tile):
    seed_step(0, 0, 0)
    weights = torch.tensor([3.0, 1.0, 2.0, 0.5, 1.5])
    sim = torch.cat([torch.tensor([5.0]), weights.log()]).repeat(20_000, 1)
    row, column = torch.zeros(20_000, 1, dtype=torch.int64), torch.arange(6)[:, None]
    drawn, _ = draw(sim, row, column, tile=tile)
    counts = torch.bincount(drawn, minlength=6)
    assert counts[0] == 0  # the positive
    expected = 20_000 * weights / weights.sum()
    chi_squared = ((counts[1:] - expected) ** 2 / expected).sum()
    assert float(chi_squared) < 18.5  # 0.1 % of such draws exceed it, at 4 degrees of freedom


def test_tiles_draw_what_one_tile_draws():
    sim, keys = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)), torch.arange(64)
    found = []
    for tile in (7, 64):
        seed_step(0, 0, 0)
        found.append(draw(sim, keys[:, None], tile=tile)[0])
    assert torch.equal(*found)
    assert len(set(found[0].tolist())) > 20


@pytest.mark.parametrize("value", [1e6, -1e6, 3e38])
@pytest.mark.parametrize("tile", [1, 100])
def test_huge_logits_cannot_break_the_draw(value, tile):
    sim = torch.full((2, 3), value)
    sim[:, 2] = -value
    rows, columns = torch.tensor([[0], [1]]), torch.tensor([[0], [1], [2]])
    drawn, has_negative = draw(sim, rows, columns, tile=tile)
    assert bool(has_negative.all())
    assert not positive_pairs(rows, columns)[torch.arange(2), drawn].any()


def test_a_number_next_to_one_takes_the_last_candidate(monkeypatch):
    """Rounding may leave the cumulated probability below the number."""
    sim = torch.zeros(1, 50_000)
    sim[0, -100:] = -torch.inf
    monkeypatch.setattr(matching, "shared_uniform", lambda *_, device: torch.ones(1))
    rows, columns = torch.tensor([[0]]), torch.arange(50_000)[:, None]
    monkeypatch.setattr(matching, "similarity", lambda queries, some, _: queries[:, some[:, 0]])
    drawn, _ = sample_hard_negatives(sim, columns, ONE, rows, columns, tile=4096)
    assert drawn.tolist() == [50_000 - 101]


@pytest.mark.parametrize("tile", [1, 100])
@pytest.mark.parametrize("size", [1, 3])
def test_rows_without_a_negative_say_so(size, tile):
    rows = torch.tensor([[5, 0], [1, 7], [1, 7]])[:size]  # the first one lacks the last column
    columns = torch.tensor([[5, 7], [5, 7], [0, 7]])[:size]
    _, has_negative = draw(torch.zeros(size, size), rows, columns, tile=tile)
    assert has_negative.tolist() == [size > 1] + [False] * (size - 1)


def _drawn_together():
    """Return the draws of all rows, of logits that every process knows."""
    seed_step(5, 3, rank())
    generator = torch.Generator().manual_seed(2)
    sim, keys = torch.randn(12, 12, generator=generator), torch.arange(12)[:, None]
    share = 12 // world_size()
    own = slice(rank() * share, (rank() + 1) * share)
    torch.rand(rank())  # draws of its own change nothing
    twice = [draw(sim[own], keys[own], keys)[0] for _ in range(2)]
    return all_gather(torch.stack(twice, dim=1)).tolist()


def test_draws_do_not_depend_on_the_number_of_processes():
    alone = _drawn_together()
    assert run_processes(_drawn_together, 2) == alone
    first, second = zip(*alone, strict=True)
    assert first != second


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
