"""The ring buffer against a deque."""

from collections import deque

import pytest
import torch

from triptych.objectives.feature_queue import FeatureQueue


@pytest.mark.parametrize("size", [1, 5, 7])
@pytest.mark.parametrize("batches", [[3, 3, 3, 3], [2, 5, 1, 4], [9], [1] * 20])
def test_it_holds_the_last_pairs_whatever_the_sizes(size, batches):
    queue, expected, count = FeatureQueue(size, 2), deque(maxlen=size), 0
    for batch in batches:
        values = torch.arange(count, count + batch, dtype=torch.float32)
        count += batch
        expected.extend(values.tolist())
        pairs = values[:, None].repeat(1, 2)
        queue.push(pairs, pairs + 0.5, pairs.long())
        image, text, keys = queue.features()
        assert sorted(image[:, 0].tolist()) == sorted(expected)
        assert torch.equal(text, image + 0.5)
        assert torch.equal(keys, image.long())


def test_an_empty_queue_gives_no_negatives():
    image, text, keys = FeatureQueue(4, 3).features()
    assert (image.shape, text.shape, keys.shape) == ((0, 3), (0, 3), (0, 2))


def test_a_queue_of_no_size_ignores_what_is_pushed():
    queue = FeatureQueue(0, 3)
    queue.push(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 2, dtype=torch.int64))
    assert len(queue.features()[0]) == 0


def test_a_saved_queue_goes_on_where_it_was():
    queue, other = FeatureQueue(5, 2), FeatureQueue(5, 2)
    first, second = torch.randn(3, 2), torch.randn(4, 2)
    keys = torch.arange(8).reshape(4, 2)
    queue.push(first, first, keys[:3])
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.push(second, second, keys)
    for mine, theirs in zip(queue.features(), other.features(), strict=True):
        assert torch.equal(mine, theirs)


def test_pushed_embeddings_keep_no_graph():
    queue, image = FeatureQueue(2, 2), torch.randn(1, 2, requires_grad=True)
    queue.push(image, image, torch.zeros(1, 2, dtype=torch.int64))
    assert not queue.features()[0].requires_grad
