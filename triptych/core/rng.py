"""Random state: one generator a sample, and the whole process state for bitwise resuming."""

from __future__ import annotations

import random
from typing import Any

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


def random_state() -> dict[str, Any]:
    """Return the random state of Python, NumPy and torch as tensors and JSON-able values."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    version, internal, gauss_next = random.getstate()
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss_next],
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        (kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached)
    )
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
