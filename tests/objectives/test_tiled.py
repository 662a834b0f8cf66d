"""The contrastive loss in tiles against whole matrices, and those against a plain loop."""

import pytest
import torch
from torch.nn import functional as F

from triptych.objectives.contrastive import itc_loss, positive_pairs, similarity, soft_targets
from triptych.objectives.tiled import Teacher, contrastive_rows

ROWS, COLUMNS, QUEUE, WIDTH = 6, 15, 8, 5


def unit(*shape, generator):
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def make_case(alpha):
    """Return rows, columns in two parts of which one has no gradient, keys and a teacher."""
    generator = torch.Generator().manual_seed(0)
    rows = unit(ROWS, WIDTH, generator=generator).requires_grad_()
    columns = unit(COLUMNS, WIDTH, generator=generator).requires_grad_()
    queue = unit(QUEUE, WIDTH, generator=generator)
    temperature = torch.tensor(0.07, requires_grad=True)
    keys = torch.stack([torch.arange(COLUMNS), torch.arange(COLUMNS) // 3 + 50], dim=1)
    old = torch.stack([torch.arange(QUEUE) + 100, torch.arange(QUEUE) + 51], dim=1)
    teacher = None
    if alpha is not None:
        teacher = Teacher(unit(ROWS, WIDTH, generator=generator), alpha)
    positives = positive_pairs(keys[:ROWS], torch.cat([keys, old]))
    assert positives.sum(dim=1).tolist() == [3, 3, 3, 4, 4, 4]  # some lie in the queue
    return rows, columns, queue, temperature, keys, old, teacher


def loss_and_gradients(case, tile):
    rows, columns, queue, temperature, keys, old, teacher = case
    per_row = contrastive_rows(
        rows, (columns, queue), temperature, keys[:ROWS], (keys, old), teacher=teacher, tile=tile
    )
    weights = torch.linspace(0.5, 2.0, ROWS) / ROWS  # rows do not all count alike
    loss = (per_row * weights).sum()
    return per_row.detach(), torch.autograd.grad(loss, [rows, columns, temperature])


@pytest.mark.parametrize("alpha", [None, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("tile", [1, 4, 7, 22])
def test_tiles_equal_whole_matrices(alpha, tile):
    case = make_case(alpha)
    expected, expected_gradients = loss_and_gradients(case, 1000)
    found, gradients = loss_and_gradients(case, tile)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert theirs.abs().max() > 1e-2
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("alpha", [None, 0.4])
def test_whole_matrices_equal_a_loop(alpha):
    rows, columns, queue, temperature, keys, old, teacher = make_case(alpha)
    found, _ = loss_and_gradients(make_case(alpha), 1000)
    rows, columns = rows.detach(), columns.detach()
    temperature = temperature.detach()
    everything, all_keys = torch.cat([columns, queue]), torch.cat([keys, old]).tolist()
    for row in range(ROWS):
        logits = (everything @ rows[row] / temperature).double()
        same = [any(a == b for a, b in zip(all_keys[row], other)) for other in all_keys]
        target = torch.tensor(same).double() / sum(same)
        if teacher is not None:
            taught = torch.softmax((everything @ teacher.queries[row] / temperature).double(), 0)
            target = 0.4 * taught + 0.6 * target
        expected = -(target * torch.log_softmax(logits, 0)).sum()
        assert float(found[row]) == pytest.approx(float(expected), abs=1e-5)


def test_both_directions_are_itc():
    rows, columns, _, temperature, keys, _, _ = make_case(None)
    image, text = rows.detach(), columns.detach()[:ROWS]
    keys = keys[:ROWS]
    sims = similarity(image, text, temperature)
    targets = soft_targets(positive_pairs(keys, keys), None, 0.0)
    i2t = contrastive_rows(image, (text,), temperature, keys, (keys,))
    t2i = contrastive_rows(text, (image,), temperature, keys, (keys,))
    expected = itc_loss(sims, sims.T, targets, targets)
    torch.testing.assert_close((i2t.mean() + t2i.mean()) / 2, expected)


@pytest.mark.parametrize("tile", [2, 1000])
def test_a_small_temperature_stays_finite_and_an_empty_queue_changes_nothing(tile):
    rows, columns, _, _, keys, _, teacher = make_case(0.4)
    temperature = torch.tensor(0.001, requires_grad=True)
    empty = (columns, columns.detach()[:0]), (keys, keys[:0])
    per_row = contrastive_rows(
        rows, empty[0], temperature, keys[:ROWS], empty[1], teacher=teacher, tile=tile
    )
    for gradient in torch.autograd.grad(per_row.sum(), [rows, columns, temperature]):
        assert bool(gradient.isfinite().all())
    without = contrastive_rows(
        rows, (columns,), temperature, keys[:ROWS], (keys,), teacher=teacher, tile=1000
    )
    torch.testing.assert_close(per_row, without, atol=1e-3, rtol=1e-5)  # logits of about 1,000


def test_autocast_changes_nothing():
    case = make_case(0.4)
    expected, expected_gradients = loss_and_gradients(case, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, gradients = loss_and_gradients(case, 4)
    assert torch.equal(found, expected)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(ours, theirs)
