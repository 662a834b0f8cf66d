"""What a step takes at any batch size, from measured steps of two or three small ones.

A step's memory is a part that does not depend on the batch, which is counted, and a peak above it
that is a straight line in the samples at a time: docs/scale.md derives both. Its seconds are a
straight line too. Bytes are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import ceil, lcm
from typing import Any

import numpy as np
from torch import Tensor

from triptych.checkpoint.nested import split_tensors
from triptych.train.estimate import StateCount
from triptych.train.schedule import ObjectiveSchedules
from triptych.train.state import capture_state
from triptych.train.trainer import Trainer

MOST_KINDS = 12
"""Steps of a period of objectives that are looked at; longer periods are cut."""


@dataclass(frozen=True, slots=True)
class StepKind:
    """Steps that compute the same objectives.

    Attributes:
        number: One of these steps, from 0.
        objectives: What is computed.
        share: Of all steps.
    """

    number: int
    objectives: frozenset[str]
    share: float


def step_kinds(objectives: ObjectiveSchedules, max_steps: int) -> list[StepKind]:
    """Return the kinds of steps of a run: objectives join, leave, and may pause between steps."""
    edges = {0, max_steps}
    for schedule in objectives.schedules:
        edges |= {schedule.start_step, schedule.end_step or max_steps}
    ordered = sorted(edge for edge in edges if edge <= max_steps)
    period = min(MOST_KINDS, lcm(*(s.every_steps for s in objectives.schedules)))
    numbers: dict[frozenset[str], int] = {}
    shares: dict[frozenset[str], float] = {}
    for start, end in pairwise(ordered):
        looked_at = range(start, min(end, start + period))
        for number in looked_at:
            kind = frozenset(objectives.at(number))
            numbers[kind] = number
            part = (end - start) / max_steps / len(looked_at)
            shares[kind] = shares.get(kind, 0.0) + part
    return [StepKind(number, kind, shares[kind]) for kind, number in numbers.items()]


@dataclass(frozen=True, slots=True)
class Point:
    """A measured value.

    Attributes:
        samples: Of a micro-batch.
        chunk: Samples of a chunk of the gradient cache, for seconds the number of chunks; None
            without one.
        value: Bytes or seconds.
    """

    samples: int
    chunk: int | None
    value: float


@dataclass(frozen=True, slots=True)
class Line:
    """A value that grows with the samples, and with a gradient cache.

    Attributes:
        base: Of no sample.
        per_sample: Of each sample of a micro-batch.
        per_chunked: Beside, bytes of each sample of a chunk, or seconds of each chunk.
    """

    base: float
    per_sample: float
    per_chunked: float = 0.0

    def at(self, samples: int, chunk: int | None = None) -> float:
        """Return the value of a batch; at least 0."""
        chunked = 0 if chunk is None else min(chunk, samples)
        return max(0.0, self.base + self.per_sample * samples + self.per_chunked * chunked)

    @classmethod
    def through(cls, points: Sequence[Point]) -> Line:
        """Return the line that is nearest to the points: of one, through no samples too."""
        values = np.array([p.value for p in points])
        if points[0].chunk is not None:
            rows = [[1.0, p.samples, min(p.chunk or 0, p.samples)] for p in points]
            base, each, chunked = np.linalg.lstsq(np.array(rows), values, rcond=None)[0]
            return cls(float(base), max(0.0, float(each)), max(0.0, float(chunked)))
        most = max(points, key=lambda p: p.samples)
        if len({p.samples for p in points}) == 1:
            return cls(0.0, most.value / most.samples)
        rows = [[1.0, p.samples] for p in points]
        base, each = np.linalg.lstsq(np.array(rows), values, rcond=None)[0]
        return cls(float(base), max(0.0, float(each)))


def num_chunks(samples: int, chunk: int | None) -> int | None:
    """Return the chunks of a micro-batch; None without a gradient cache."""
    return None if chunk is None else ceil(samples / chunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """Bytes that do not depend on the batch, counted on real tensors.

    Attributes:
        weights: Trained parameters.
        optimizer: The optimizer's moments.
        teacher: A momentum model and other frozen parameters.
        queue: Buffers.
        checkpoint: All that a checkpoint stores.
    """

    weights: float
    optimizer: float
    teacher: float
    queue: float
    checkpoint: float

    @property
    def resident(self) -> float:
        """What lies in memory before a step."""
        return self.weights + self.optimizer + self.teacher + self.queue

    @classmethod
    def of(cls, trainer: Trainer, count: StateCount) -> StateBytes:
        """Count them after a step, by which the optimizer has its moments."""
        moments = {
            id(value): value
            for stored in trainer.optimizer.state.values()
            for value in stored.values()
            if isinstance(value, Tensor)
        }
        _, saved = split_tensors(capture_state(trainer.task, trainer.optimizer))
        counts = count.all()
        return cls(
            weights=4.0 * counts.trained,
            optimizer=float(_size(moments.values())),
            teacher=4.0 * (counts.teacher + counts.frozen),
            queue=float(count.buffer_bytes),
            checkpoint=float(_size(saved.values())),
        )


def _size(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryForecast:
    """Bytes of a process at the peak of a run; without a GPU, of the processor's memory.

    Attributes:
        weights: Trained parameters.
        optimizer: Its moments.
        teacher: Frozen parameters.
        queue: Buffers.
        gradients: Gradients, 16-bit copies of weights, and the optimizer's work space: what of the
            peak does not depend on the batch.
        activations: What of the peak depends on the batch, input tensors included.
        copy: Of the state, while a checkpoint is written in the background.
        data: Decoded images that are kept, and batches that workers prepare.
        process: Python, its libraries and their kernels.
    """

    weights: float
    optimizer: float
    teacher: float
    queue: float
    gradients: float
    activations: float
    copy: float
    data: float = 0.0
    process: float = 0.0

    @property
    def tensors(self) -> float:
        """What torch's allocator gives out."""
        return self.total - self.data - self.process

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(asdict(self).values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLines:
    """Memory and time of a step in one setting, as lines.

    Attributes:
        first: Bytes of the first micro-batch of a step.
        later: Of a later one, beside whose activations all gradients lie.
        update: Of the update.
        alone_s: Seconds of the forward and the backward pass of a step's only micro-batch, by its
            samples and, with a gradient cache, its chunks: each costs the same beside what its
            samples do.
        micro_s: The same of one of several micro-batches, which losses that compare all of them
            encode once more.
        data_s: Seconds to prepare a micro-batch.
        update_s: Seconds of clipping, optimizer and what follows.
    """

    first: Line
    later: Line
    update: Line
    alone_s: Line
    micro_s: Line
    data_s: Line
    update_s: float

    def memory(
        self,
        state: StateBytes,
        samples: int,
        accumulate: int,
        *,
        chunk: int | None = None,
        copies: bool = True,
    ) -> MemoryForecast:
        """Return the memory of tensors.

        Args:
            state: What does not depend on the batch.
            samples: Of a micro-batch.
            accumulate: Micro-batches of a step.
            chunk: Of the gradient cache; None without one.
            copies: Whether checkpoints are written in the background.
        """
        lines = (self.later if accumulate > 1 else self.first, self.update)
        peak, line = max(((each.at(samples, chunk), each) for each in lines), key=lambda p: p[0])
        fixed = min(peak, max(0.0, line.base))
        return MemoryForecast(
            weights=state.weights,
            optimizer=state.optimizer,
            teacher=state.teacher,
            queue=state.queue,
            gradients=fixed,
            activations=peak - fixed,
            copy=state.checkpoint if copies else 0.0,
        )

    def seconds(
        self,
        samples: int,
        accumulate: int,
        *,
        chunk: int | None = None,
        workers: int = 0,
    ) -> float:
        """Return the seconds of a step.

        Args:
            samples: Of a micro-batch.
            accumulate: Micro-batches of a step.
            chunk: Of the gradient cache; None without one.
            workers: Processes that prepare batches meanwhile; 0 prepares them in between.
        """
        line = self.alone_s if accumulate == 1 else self.micro_s
        compute = line.at(samples, num_chunks(samples, chunk))
        data = self.data_s.at(samples)
        micro = compute + data if workers == 0 else max(compute, data / workers)
        return accumulate * micro + self.update_s
