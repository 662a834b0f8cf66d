import random

import numpy as np
import torch

from triptych.core.rng import (
    sample_generator,
    seed_everything,
    seed_step,
    shared_generator,
)


def test_a_sample_draws_the_same_whoever_asks():
    first = sample_generator(3, 1, 7).random(4)
    np.testing.assert_array_equal(first, sample_generator(3, 1, 7).random(4))


def test_seed_epoch_index_and_stream_all_matter():
    draws = {
        tuple(sample_generator(seed, epoch, index, stream).integers(0, 2**62, 2).tolist())
        for seed in (0, 1)
        for epoch in (0, 1, 2)
        for index in (0, 1, 1000)
        for stream in (0, 1)
    }
    assert len(draws) == 2 * 3 * 3 * 2


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_a_seed_repeats_the_numbers_of_the_process():
    seed_everything(5)
    first = draw()
    seed_everything(5)
    assert draw() == first


def test_a_step_is_seeded_by_seed_step_rank_and_micro_batch_alone():
    def drawn(*place):
        draw()  # whatever came before does not matter
        seed_step(*place)
        return draw()

    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (-1, 0, 0, 0)]
    first = [drawn(*place) for place in places]
    assert [drawn(*place) for place in places] == first
    for numbers in zip(*first, strict=True):  # Python's, NumPy's, torch's
        assert len(set(numbers)) == len(places)


def test_shared_numbers_depend_on_all_but_the_rank():
    def drawn(seed, step, rank, micro):
        seed_step(seed, step, rank, micro)
        torch.rand(rank + 1)  # a rank's own draws leave them alone
        generator = shared_generator("cpu")
        return torch.rand(2, generator=generator).tolist(), torch.rand(2).tolist()

    one, other = drawn(3, 4, 0, 0), drawn(3, 4, 5, 0)
    assert one[0] == other[0]
    assert one[1] != other[1]
    different = [drawn(*place)[0] for place in [(2, 4, 0, 0), (3, 5, 0, 0), (3, 4, 0, 1)]]
    assert len({tuple(numbers) for numbers in (*different, one[0])}) == 4
