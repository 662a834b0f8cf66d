"""Rows of a cache when beams fork."""

import torch

from triptych.nn.kv_cache import DecoderCache


def test_selected_rows_keep_their_history():
    cache = DecoderCache(2)
    first = torch.arange(2.0).reshape(2, 1, 1, 1)
    for layer in cache.layers:
        layer.append(first, first + 10)
    cache.select(torch.tensor([1, 1, 0]))
    new = torch.full((3, 1, 1, 1), 5.0)
    for layer in cache.layers:
        key, value = layer.append(new, new)
        assert key[:, 0, :, 0].tolist() == [[1.0, 5.0], [1.0, 5.0], [0.0, 5.0]]
        assert value[:, 0, 0, 0].tolist() == [11.0, 11.0, 10.0]


def test_an_empty_cache_can_be_reordered():
    cache = DecoderCache(1)
    cache.select(torch.tensor([0, 0]))
    key, _ = cache.layers[0].append(torch.ones(2, 1, 1, 1), torch.ones(2, 1, 1, 1))
    assert key.shape == (2, 1, 1, 1)
