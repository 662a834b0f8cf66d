"""Shuffling within windows of shards, where it is dear to read any sample at any time.

An epoch permutes the shards, takes them in windows of so many, and permutes the samples of each
window. Where a sample stands is a pure function of (seed, epoch, offset), as in a permutation of
everything: a run goes on exactly from any step, with any number of workers and processes, and a
process holds the numbers of one or two windows. Which shards come next is known, so that they can
be fetched before they are asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.core.config import check
from triptych.core.errors import ConfigError
from triptych.core.rng import sample_generator
from triptych.data.records import Record, shard_sizes
from triptych.data.storage import is_url, shard_cache

SHARD_STREAM, WINDOW_STREAM = 253, 252
MAX_KEPT = 2  # plans: a batch may hold the end of one and the start of the next


@dataclass(slots=True)
class ShardWindows:
    """The order of samples within an epoch.

    Attributes:
        sizes: Samples of each shard, in the order of the dataset.
        window: Shards whose samples are mixed with one another.
        announce: Told the numbers of the shards of a window that begins, and of the next.
    """

    sizes: Sequence[int]
    window: int
    announce: Callable[[Sequence[int]], None] | None = None
    _starts: NDArray[np.int64] = field(init=False)
    _epochs: dict[int, tuple[list[NDArray[np.int64]], list[int]]] = field(default_factory=dict)
    _windows: dict[tuple[int, int], NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Reject a window of no shards, and number the samples."""
        check(self.window >= 1, "shuffle_window", self.window, "be at least 1 shard")
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    def index(self, seed: int, epoch: int, offset: int) -> int:
        """Return the sample that stands at an offset of an epoch."""
        _, ends = self._epoch(seed, epoch)
        number = bisect_right(ends, offset)
        before = 0 if number == 0 else ends[number - 1]
        return int(self._window(seed, epoch, number)[offset - before])

    def _epoch(self, seed: int, epoch: int) -> tuple[list[NDArray[np.int64]], list[int]]:
        """Return the shards of each window, and the offset at which each window ends."""
        found = self._epochs.get(epoch)
        if found is None:
            rng = sample_generator(seed, epoch, 0, SHARD_STREAM)
            order = rng.permutation(len(self.sizes))
            shards = [order[i : i + self.window] for i in range(0, len(order), self.window)]
            sizes = np.asarray(self.sizes, dtype=np.int64)
            ends = np.cumsum([sizes[group].sum() for group in shards])
            found = shards, ends.tolist()
            _keep(self._epochs, epoch, found)
        return found

    def _window(self, seed: int, epoch: int, number: int) -> NDArray[np.int64]:
        """Return the samples of a window in their order."""
        found = self._windows.get((epoch, number))
        if found is None:
            shards = self._epoch(seed, epoch)[0]
            if self.announce is not None:
                more = shards[number + 1] if number + 1 < len(shards) else ()
                self.announce([*map(int, shards[number]), *map(int, more)])
            samples = [np.arange(self._starts[s], self._starts[s + 1]) for s in shards[number]]
            rng = sample_generator(seed, epoch, number, WINDOW_STREAM)
            found = rng.permutation(np.concatenate(samples))
            _keep(self._windows, (epoch, number), found)
        return found


def _keep(plans: dict[Any, Any], key: Any, plan: Any) -> None:
    if len(plans) == MAX_KEPT:
        plans.pop(next(iter(plans)))
    plans[key] = plan


def windows_of(records: Sequence[Record], window: int | None) -> ShardWindows | None:
    """Return the windows of a dataset; None where none are asked for, or nothing is in shards.

    Shards behind URLs are fetched whole, in the background, before their window begins.
    """
    sizes = None if window is None else shard_sizes(records)
    if sizes is None or window is None:
        return None
    starts = np.concatenate([[0], np.cumsum(sizes)])

    def fetch(shards: Sequence[int]) -> None:
        images = (records[int(starts[shard])].image for shard in shards)
        paths = dict.fromkeys(i.path for i in images if i is not None and i.size is not None)
        urls = [path for path in paths if is_url(path)]
        if urls:
            shard_cache.fetch(urls)

    return ShardWindows(sizes, window, fetch)


def check_windows(datasets: Sequence[Sequence[Record]], window: int | None) -> None:
    """Raise a ConfigError where windows are asked for and no dataset is in shards."""
    if window is not None and all(shard_sizes(records) is None for records in datasets):
        raise ConfigError(
            f"data.shuffle_window = {window} mixes the samples of so many shards, and no source is "
            "of tar shards or parquet tables with images: omit it, or write shards with "
            "`triptych data shard`"
        )
