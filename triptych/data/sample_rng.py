"""One generator that is set to the state of any sample, where making one each time is too slow."""

from __future__ import annotations

from typing import Any

import numpy as np

MASK_64 = 2**64 - 1


class SampleRng:
    """Gives what `core.rng.sample_generator` gives, in 1 µs instead of 15 µs.

    There is one generator: the one that `at` returned before becomes the new one.
    """

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=np.zeros(2, dtype=np.uint64))
        self._generator = np.random.Generator(self._bits)
        self._fresh: Any = self._bits.state  # counter 0, nothing buffered
        self._key = self._fresh["state"]["key"]

    def at(self, seed: int, epoch: int, index: int, stream: int = 0) -> np.random.Generator:
        """Return the generator of one sample in one epoch.

        Args:
            seed: Seed of the run.
            epoch: Epoch, from 0.
            index: Position of the sample in the dataset.
            stream: Tells apart several generators for the same sample.
        """
        self._key[0] = seed & MASK_64
        self._key[1] = (epoch << 40) ^ index ^ (stream << 56)
        self._bits.state = self._fresh
        return self._generator

    def __reduce__(self) -> tuple[type[SampleRng], tuple[()]]:
        return type(self), ()
