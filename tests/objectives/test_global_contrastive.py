"""The global contrastive loss against hand-worked cases and a NumPy loop."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from triptych.distributed.collectives import all_gather
from triptych.distributed.env import rank, run_processes
from triptych.objectives.global_contrastive import PairKeys, global_contrastive_loss

ZERO = torch.tensor(0.0)


def _embeddings(rows=5, width=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, rows, width, generator=generator)
    return F.normalize(first, dim=-1), F.normalize(second, dim=-1)


def loop(image, text, scale, matched, image_key, caption_key):
    """Return the loss with one loop a row; lists of keys."""
    logits = math.exp(scale) * image.double().numpy() @ text.double().numpy().T
    total = []
    for row in range(len(image)):
        if not matched[row]:
            continue
        for scores, right in (
            (
                logits[row],
                lambda j, row=row: (
                    caption_key[j] == caption_key[row]
                    or (matched[j] and image_key[j] == image_key[row])
                ),
            ),
            (
                logits[:, row],
                lambda j, row=row: (
                    image_key[j] == image_key[row]
                    or (matched[j] and caption_key[j] == caption_key[row])
                ),
            ),
        ):
            log_sum = np.log(np.exp(scores - scores.max()).sum()) + scores.max()
            positives = [j for j in range(len(image)) if right(j)]
            total.append(np.mean([log_sum - scores[j] for j in positives]))
    return sum(total) / len(total) if total else 0.0


def test_two_orthogonal_pairs_by_hand():
    # cosines are the unit matrix and the scale is 1: each row is -ln(e / (e + 1))
    unit = torch.eye(2)
    expected = math.log((math.e + 1) / math.e)
    assert float(global_contrastive_loss(unit, unit, ZERO)) == pytest.approx(expected, abs=1e-6)


def test_equal_embeddings_cost_the_logarithm_of_the_batch():
    same = F.normalize(torch.ones(7, 4), dim=-1)
    loss = global_contrastive_loss(same, same, torch.tensor(3.0))
    assert float(loss) == pytest.approx(math.log(7), abs=1e-5)


def test_a_mismatched_pair_is_only_a_column():
    image, text = _embeddings()
    matched = torch.tensor([True, False, True, True, False])
    found = global_contrastive_loss(image, text, torch.tensor(1.5), matched=matched)
    keys = list(range(5))
    assert float(found) == pytest.approx(loop(image, text, 1.5, matched, keys, keys), abs=1e-6)


def test_equal_images_and_texts_are_no_negatives():
    image, text = _embeddings(6)
    image_key, caption_key = [0, 1, 2, 2, 4, 5], [9, 8, 7, 6, 9, 8]
    matched = torch.tensor([True, True, True, True, True, False])  # row 5 has row 1's caption
    keys = PairKeys(torch.tensor(image_key), torch.tensor(caption_key))
    found = global_contrastive_loss(image, text, torch.tensor(1.0), matched=matched, keys=keys)
    expected = loop(image, text, 1.0, matched, image_key, caption_key)
    assert float(found) == pytest.approx(expected, abs=1e-6)
    plain = global_contrastive_loss(image, text, torch.tensor(1.0), matched=matched)
    assert abs(float(plain) - expected) > 0.05


@pytest.mark.parametrize("scope", ["global", "local"])
def test_no_matched_pair_gives_zero_with_its_graph(scope):
    image, text = (t.requires_grad_() for t in _embeddings())
    scale = torch.tensor(1.0, requires_grad=True)
    none = torch.zeros(5, dtype=torch.bool)
    loss = global_contrastive_loss(image, text, scale, matched=none, scope=scope)
    assert float(loss.detach()) == 0.0
    for gradient in torch.autograd.grad(loss, [image, text, scale]):
        assert not gradient.any()


def test_order_of_the_batch_changes_nothing():
    image, text = _embeddings()
    matched, order = torch.tensor([True, False, True, True, True]), torch.tensor([3, 0, 4, 1, 2])
    first = global_contrastive_loss(image, text, torch.tensor(1.0), matched=matched)
    other = global_contrastive_loss(
        image[order], text[order], torch.tensor(1.0), matched=matched[order]
    )
    torch.testing.assert_close(first, other)


def test_gradients_agree_with_finite_differences():
    image, text = (t.double().requires_grad_() for t in _embeddings(3))
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    matched = torch.tensor([True, True, False])

    def loss(first, second, s):  # the loss itself is fp32; its formula in fp64
        logits = s.exp() * first @ second.T
        i2t = -torch.log_softmax(logits, 1).diagonal()[matched]
        t2i = -torch.log_softmax(logits, 0).diagonal()[matched]
        return (i2t + t2i).mean() / 2

    assert torch.autograd.gradcheck(loss, (image, text, scale))
    expected = torch.autograd.grad(loss(image, text, scale), [image, text, scale])
    found = torch.autograd.grad(
        global_contrastive_loss(image, text, scale, matched=matched), [image, text, scale]
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


OWN = (slice(0, 3), slice(3, 6))
"""Rows of each of two processes."""


def local_gradients():
    """Return every process's gradient of the local loss, of the embeddings it made."""
    image, text = (t[OWN[rank()]].clone().requires_grad_() for t in _embeddings(6))
    loss = global_contrastive_loss(image, text, torch.tensor(1.0), scope="local")
    found = torch.autograd.grad(loss, [image, text])
    return [all_gather(gradient).tolist() for gradient in found]


def test_local_takes_the_embeddings_of_other_processes_alone_as_constants():
    found = run_processes(local_gradients, 2)
    image, text = _embeddings(6)
    expected = [torch.zeros_like(image), torch.zeros_like(text)]
    for own in OWN:
        mine = [t[own].clone().requires_grad_() for t in (image, text)]
        joined = [t.clone().index_put((torch.arange(6)[own],), m)
                  for t, m in zip((image, text), mine, strict=True)]  # fmt: skip
        logits = math.e * joined[0] @ joined[1].T
        rows = -torch.log_softmax(logits, 1).diagonal()[own]
        columns = -torch.log_softmax(logits, 0).diagonal()[own]
        loss = 2 * (rows + columns).sum() / 2 / 6  # averaged over two processes, a mean of 6 pairs
        for total, gradient in zip(expected, torch.autograd.grad(loss, mine), strict=True):
            total[own] = gradient
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(one), other, atol=1e-6, rtol=1e-5)
