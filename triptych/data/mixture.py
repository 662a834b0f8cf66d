"""Several sources in one run: each step draws one of them and is a batch of that source alone.

Which source a step draws depends on the seed, the ratios and the step: it is the same on every
rank, with any number of workers, and from whatever step a run goes on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate as running_sum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from triptych.core.config import check
from triptych.core.errors import ConfigError
from triptych.core.rng import sample_generator
from triptych.data.batches import BatchBuilder, Built
from triptych.data.collate.base import AnyCollator
from triptych.data.order import SampleOrder
from triptych.data.records import Record
from triptych.data.skips import SkipLog
from triptych.data.stream import BatchLoader, check_source
from triptych.data.transforms.pipeline import ImageTransform
from triptych.data.windows import windows_of

SOURCE = "source"
"""Key of a batch: () int64, the number of the source that it was drawn from."""

MIXTURE_STREAM = 254
STEPS_AT_ONCE = 4096
SEED_STRIDE = 7_368_787
"""Apart by this are the seeds of the sources, or two of one size would have one order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureSource:
    """One source of a mixture.

    Attributes:
        name: Its name in counters and curves, unique among the sources.
        records: The dataset.
        collator: Makes its batches.
        transform: Prepares its images.
        ratio: How often it is drawn, relative to the sum of all ratios.
        local_batch_size: Samples per batch in this process; None takes the mixture's.
    """

    name: str
    records: Sequence[Record]
    collator: AnyCollator[Any]
    transform: ImageTransform
    ratio: float = 1.0
    local_batch_size: int | None = None


@dataclass(slots=True)
class SourceOrder:
    """The source of each step, drawn independently with the ratios as chances.

    Attributes:
        ratios: One a source, at least 0, not all 0.
        seed: Seed of the run.
    """

    ratios: tuple[float, ...]
    seed: int
    _blocks: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    _counts: list[NDArray[np.int64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Reject ratios of which no chances can be made."""
        usable = all(0 <= ratio < float("inf") for ratio in self.ratios) and sum(self.ratios) > 0
        check(usable, "ratio", self.ratios, "be at least 0, and above 0 for one source")

    def at(self, step: int) -> int:
        """Return the number of the source of a step, from 0."""
        block, offset = divmod(step, STEPS_AT_ONCE)
        return int(self._drawn(block)[offset])

    def counts(self, step: int) -> NDArray[np.int64]:
        """Return (sources,) int64: how many of the steps before this one drew each source."""
        block, offset = divmod(step, STEPS_AT_ONCE)
        while len(self._counts) <= block:  # counts before each block
            last = len(self._counts) - 1
            before = self._counts[-1] + self._count(last, STEPS_AT_ONCE) if self._counts else 0
            self._counts.append(np.zeros(len(self.ratios), dtype=np.int64) + before)
        return self._counts[block] + self._count(block, offset)

    def _count(self, block: int, end: int) -> NDArray[np.int64]:
        return np.bincount(self._drawn(block)[:end], minlength=len(self.ratios))

    def _drawn(self, block: int) -> NDArray[np.int64]:
        found = self._blocks.get(block)
        if found is None:
            if len(self._blocks) > 1:  # the last one and this are enough
                self._blocks.clear()
            rng = sample_generator(self.seed, block, 0, MIXTURE_STREAM)
            chances = np.cumsum(self.ratios) / np.sum(self.ratios)
            drawn = np.searchsorted(chances, rng.random(STEPS_AT_ONCE), side="right")
            last = int(np.flatnonzero(self.ratios)[-1])  # rounding may end the chances below 1
            found = self._blocks[block] = np.minimum(drawn, last).astype(np.int64)
        return found


@dataclass(slots=True)
class MixtureOrder:
    """Which samples make up which batch of a mixture.

    A source goes on where its last batch ended, in its own permutations; a source that was gone
    through begins again in a new one. All micro-batches of a step are of one source.

    Attributes:
        sources: The source of each step.
        orders: The order within each source.
        accumulate: Micro-batches of a step.
    """

    sources: SourceOrder
    orders: Sequence[SampleOrder]
    accumulate: int = 1
    _first: list[int] = field(init=False)

    def __post_init__(self) -> None:
        """Number the samples of all sources through."""
        self._first = [0, *running_sum(order.num_samples for order in self.orders)]

    @property
    def num_batches(self) -> int | None:
        """None: a mixture does not end."""
        return None

    def batch(self, micro_step: int) -> list[tuple[int, int]]:
        """Return (epoch, index) of each sample; indices run through all sources."""
        number, own = self._place(micro_step)
        first = self._first[number]
        return [(epoch, first + index) for epoch, index in self.orders[number].batch(own)]

    def lead(self, micro_step: int) -> tuple[int, int] | None:
        """Return (epoch, index) of the sample that decides for all processes, as `SampleOrder`."""
        number, own = self._place(micro_step)
        lead = self.orders[number].lead(own)
        return None if lead is None else (lead[0], self._first[number] + lead[1])

    def _place(self, micro_step: int) -> tuple[int, int]:
        """Return the number of the source of a micro-batch, and which of its batches it is."""
        step, micro_batch = divmod(micro_step, self.accumulate)
        number = self.sources.at(step)
        return number, int(self.sources.counts(step)[number]) * self.accumulate + micro_batch

    def locate(self, index: int) -> tuple[int, int]:
        """Return the number of the source that holds a sample, and the sample's index in it."""
        number = bisect_right(self._first, index) - 1
        return number, index - self._first[number]


@dataclass(slots=True)
class MixtureBuilder:
    """Makes each batch with the builder of its source, and writes the source beside it.

    Attributes:
        order: Tells the source of a sample.
        builders: One a source.
    """

    order: MixtureOrder
    builders: Sequence[BatchBuilder]

    def build(
        self,
        samples: Sequence[tuple[int, int]],
        note: Callable[[int], None] | None = None,
        lead: tuple[int, int] | None = None,
    ) -> Built:
        """Make the batch of some samples of one source, each (epoch, index).

        Returns:
            The source's batch, in which `index` counts within the source, and `source`.
        """
        number, own_index = self.order.locate(samples[0][1])
        first = samples[0][1] - own_index
        own = [(epoch, index - first) for epoch, index in samples]
        noted = None if note is None else lambda index: note(first + index)
        own_lead = None if lead is None else (lead[0], lead[1] - first)
        built = self.builders[number].build(own, noted, own_lead)
        if built.batch is not None:
            built.batch[SOURCE] = torch.tensor(number)
        return built

    def name(self, index: int) -> str:
        """Return how messages call a record."""
        number, own_index = self.order.locate(index)
        return self.builders[number].name(own_index)


def build_mixture(
    sources: Sequence[MixtureSource],
    *,
    seed: int,
    local_batch_size: int,
    accumulate: int = 1,
    num_workers: int = 0,
    skip_log: SkipLog | None = None,
    cache_mib: int = 0,
    start_step: int = 0,
    prefetch: int = 2,
    rank: int = 0,
    world_size: int = 1,
    shuffle_window: int | None = None,
) -> BatchLoader:
    """Return an endless iterable of training batches, each of one source.

    Args:
        sources: The sources; `source` in a batch is a number into these.
        seed: Seed of the run.
        local_batch_size: Samples of a batch in this process.
        accumulate: Batches that make one optimizer step: these are of one source.
        num_workers: Processes that prepare batches, of all sources; 0 prepares them in this one.
        skip_log: Receives everything that cannot be used.
        cache_mib: Memory for decoded images in each process, in MiB, in equal parts.
        start_step: The first batch's number.
        prefetch: Batches that each worker prepares ahead.
        rank: Number of this process among those that train together.
        world_size: How many processes train together.
        shuffle_window: Shards whose samples are mixed with one another, in each source of shards.

    Raises:
        ConfigError: A number is out of range, there is no source, or two have one name.
        DataError: A source has no record.
    """
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"a mixture needs sources of different names, got {names}")
    check(accumulate >= 1, "accumulate", accumulate, "be at least 1")
    orders, builders = [], []
    for number, source in enumerate(sources):
        size = source.local_batch_size or local_batch_size
        own_seed = seed + SEED_STRIDE * number
        check(size >= 1, "local_batch_size", size, "be at least 1")
        check_source(source.records, source.collator, source.transform)
        windows = windows_of(source.records, shuffle_window)
        number_of = len(source.records)
        orders.append(SampleOrder(number_of, size, own_seed, True, rank, world_size, windows))
        builders.append(
            BatchBuilder(
                source.records,
                source.collator,
                source.transform,
                own_seed,
                True,
                cache_mib // len(sources),
            )
        )
    drawn = SourceOrder(tuple(source.ratio for source in sources), seed)
    order = MixtureOrder(drawn, orders, accumulate)
    return BatchLoader(
        order=order,
        builder=MixtureBuilder(order, builders),
        num_workers=num_workers,
        skip_log=skip_log,
        start_step=start_step,
        prefetch=prefetch,
    )
