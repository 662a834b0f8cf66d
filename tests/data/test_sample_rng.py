import pickle

import numpy as np
import pytest

from triptych.core.rng import sample_generator
from triptych.data.order import SampleRng


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (7, 3, 123456, 1), (-1, 2**24 - 1, 2**39, 255)])
def test_it_gives_what_a_new_generator_gives(place):
    source = pickle.loads(pickle.dumps(SampleRng()))
    source.at(1, 2, 3).integers(0, 9, size=3, dtype=np.int32)  # leaves half a word buffered
    found, expected = source.at(*place), sample_generator(*place)
    for _ in range(3):
        np.testing.assert_array_equal(found.random(5), expected.random(5))
        assert found.integers(1000) == expected.integers(1000)
    np.testing.assert_array_equal(found.permutation(20), expected.permutation(20))
