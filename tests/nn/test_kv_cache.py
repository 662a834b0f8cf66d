"""Columns that beams share: which of them a beam has read when beams fork, leave and start anew."""

import pytest
import torch

from triptych.nn.attention import MASKED, SelfAttention
from triptych.nn.kv_cache import COLUMNS, MAX_SHARING, DecoderCache


def _append(cache, images, values):
    """Read one token of each beam, (B, R) numbers; return what each beam has read by now."""
    values = torch.tensor(values, dtype=torch.float32)
    cache.positions(images, values.shape[1], values.device)
    new = values.view(-1, 1, cache.columns.group_size, 1)
    key, value = cache.layers[0].append(new, new + 100)
    assert torch.equal((value - key)[cache.columns.bias.eq(0).any(2, keepdim=True).mT].unique(),
                       torch.tensor([100.0]))  # fmt: skip
    read = cache.columns.bias[:, 0] == 0  # (G, g, C)
    assert set(cache.columns.bias.unique().tolist()) <= {0.0, MASKED}
    return [
        key[group, 0, own, 0].tolist() for group, owns in enumerate(read) for own in owns.unbind()
    ]


@pytest.mark.parametrize("beams", [2, MAX_SHARING + 1])
def test_beams_that_fork_keep_their_history(beams):
    cache = DecoderCache(1)
    assert _append(cache, 2, [[1], [2]]) == [[1], [2]]
    cache.select(torch.arange(2).repeat_interleave(beams))
    said = [[10 + b for b in range(beams)], [50 + b for b in range(beams)]]
    expected = [[1, t] for t in said[0]] + [[2, t] for t in said[1]]
    assert _append(cache, 2, said) == expected
    rows = torch.cat([torch.full((beams,), 1), torch.full((beams,), beams)])
    cache.select(rows)  # all of image 0 go on from its beam 1, all of image 1 from its beam 0
    assert _append(cache, 2, said) == [[1, 11, t] for t in said[0]] + [[2, 50, t] for t in said[1]]
    cache.keep([1])
    assert _append(cache, 1, said[1:]) == [[2, 50, t, t] for t in said[1]]


def test_a_place_that_starts_anew_has_its_own_position():
    cache = DecoderCache(1)
    _append(cache, 2, [[1, 2], [3, 4]])
    cache.restart(0)
    assert _append(cache, 2, [[5, 6], [7, 8]]) == [[5], [6], [3, 7], [4, 8]]
    assert cache.lengths == [1, 2]
    positions = cache.positions(2, 2, torch.device("cpu"))
    assert positions.tolist() == [[1], [2]]


def test_an_empty_cache_can_be_reordered():
    cache = DecoderCache(1)
    cache.select(torch.tensor([0, 0]))
    cache.restart(0)
    cache.keep([0])
    assert _append(cache, 1, [[1, 2]]) == [[1], [2]]


@torch.no_grad()
def test_the_columns_of_others_change_nothing_bitwise():
    torch.manual_seed(0)
    attention = SelfAttention(16, 2)

    def last(tokens, others):
        """Attend from the last of some tokens, beside an image that has read others before."""
        cache = DecoderCache(1)
        x = torch.randn(1, 2, 16)
        for token in others:
            cache.positions(2, 2, x.device)
            attention.step(torch.cat([x, token]), cache.layers[0])
        cache.restart(0)
        for token in tokens:
            cache.positions(2, 2, x.device)
            found = attention.step(torch.cat([token, x]), cache.layers[0])
        return found[0]

    tokens = torch.randn(5, 1, 2, 16).unbind()
    alone = last(tokens, ())
    for count in (1, 7, COLUMNS, 2 * COLUMNS):
        assert torch.equal(last(tokens, torch.randn(count, 1, 2, 16).unbind()), alone)
