"""Random state: one generator a sample, one state a step, and generators that processes share."""

from __future__ import annotations

import random

import numpy as np
import torch


def sample_generator(seed: int, epoch: int, index: int, stream: int = 0) -> np.random.Generator:
    """Return the generator of one sample in one epoch.

    Every random choice about a sample (crop, flip, mask, prefix length) comes from here, so a run
    is repeatable with any number of workers.

    Args:
        seed: Seed of the run.
        epoch: Epoch, from 0.
        index: Position of the sample in the dataset.
        stream: Tells apart several generators for the same sample.
    """
    key = np.array([seed & (2**64 - 1), (epoch << 40) ^ index ^ (stream << 56)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - third-party code may read the global state
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, rank: int, micro: int = 0) -> None:
    """Seed Python, NumPy and torch for one micro-batch of one step, and what processes share.

    A step's random numbers then depend on these four alone, so that a run which goes on needs no
    stored state. `shared_generator` depends on the first, second and fourth.

    Args:
        seed: Seed of the run.
        step: Optimizer steps done before this one.
        rank: Number of this process.
        micro: Number of the micro-batch within the step.
    """
    entropy = (seed & (2**64 - 1), step, micro)
    own = np.random.SeedSequence((*entropy, rank)).generate_state(1, np.uint64)[0]
    seed_everything(int(own >> 1))  # torch takes 63 bits
    shared = np.random.SeedSequence(entropy, spawn_key=(1,)).generate_state(1, np.uint64)[0]
    _SHARED.reseed(int(shared >> 1))


def shared_generator(device: torch.device | str = "cpu") -> torch.Generator:
    """Return the generator that gives the same numbers on every process.

    For draws about rows of the joined batch: each process draws for all rows and takes its own, so
    that a row's draw does not depend on how many processes there are. All processes must draw
    equally often between two calls of `seed_step`.

    Args:
        device: Where its numbers are made; each device has a sequence of its own.
    """
    return _SHARED.on(torch.device(device))


class _SharedGenerators:
    """One generator a device, all reseeded together; they live as long as the process."""

    def __init__(self) -> None:
        self._seed = 0
        self._by_device: dict[torch.device, torch.Generator] = {}

    def reseed(self, seed: int) -> None:
        self._seed = seed
        for generator in self._by_device.values():
            generator.manual_seed(seed)

    def on(self, device: torch.device) -> torch.Generator:
        if device not in self._by_device:
            self._by_device[device] = torch.Generator(device).manual_seed(self._seed)
        return self._by_device[device]


_SHARED = _SharedGenerators()
