"""Which samples make up which batch: a pure function of seed and step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from triptych.core.rng import sample_generator

PERMUTATION_STREAM = 255
MAX_EPOCH = 2**24  # `sample_generator` holds an epoch in 24 bits


@dataclass(slots=True)
class SampleOrder:
    """The order of samples over all epochs.

    In training, epoch e visits the samples in the permutation drawn from (seed, e). Epochs follow
    each other without a gap, so a batch may hold the end of one and the start of the next, and a
    batch may be larger than the dataset. In evaluation the samples come once, in their own order.

    Attributes:
        num_samples: Size of the dataset, at least 1.
        local_batch_size: Samples of a batch on one rank.
        seed: Seed of the run.
        train: Whether to permute and go on for ever.
        rank: Number of this process.
        world_size: Number of processes; each sees its own part of every global batch.
    """

    num_samples: int
    local_batch_size: int
    seed: int
    train: bool
    rank: int = 0
    world_size: int = 1
    _permutations: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    @property
    def num_batches(self) -> int | None:
        """Batches of this rank; None in training, which does not end."""
        if self.train:
            return None
        mine = len(range(self.rank, self.num_samples, self.world_size))
        return math.ceil(mine / self.local_batch_size)

    def batch(self, step: int) -> list[tuple[int, int]]:
        """Return (epoch, index) of each sample of a batch, steps counted from 0."""
        size, world = self.local_batch_size, self.world_size
        if not self.train:
            mine = range(self.rank, self.num_samples, world)
            return [(0, index) for index in mine[step * size : (step + 1) * size]]
        first = (step * world + self.rank) * size
        return [self._at(position) for position in range(first, first + size)]

    def _at(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self.num_samples)
        epoch %= MAX_EPOCH
        permutation = self._permutations.get(epoch)
        if permutation is None:
            if len(self._permutations) > 1:  # the last one and this are enough
                self._permutations.clear()
            rng = sample_generator(self.seed, epoch, 0, PERMUTATION_STREAM)
            permutation = self._permutations[epoch] = rng.permutation(self.num_samples)
        return epoch, int(permutation[place])
