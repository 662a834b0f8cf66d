"""Steps of a run that are done to learn what they take: seconds and memory, by part of a step.

On a CPU the memory is what torch's allocator gives out, as its profiler reports it; on a GPU it is
what CUDA's caching allocator counts. Both are counted from what was taken before the step.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.autograd.profiler import profile, record_function

from triptych.train.interrupts import InterruptGuard
from triptych.train.precision import resolve_precision
from triptych.train.progress import StepClock
from triptych.train.step import unmarked
from triptych.train.trainer import Trainer, close_loader

Part = Literal["data", "forward", "backward", "update", "after_step"]

PARTS: tuple[Part, ...] = ("data", "forward", "backward", "update", "after_step")
"""Of a step; each micro-batch has the first three. `update` clips, and runs the optimizer."""

OUTSIDE = "outside blocks"
"""Of a forward pass: patches, embeddings, heads and losses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedStep:
    """What a step took.

    Attributes:
        number: The step's, from 0.
        source: Of its batch; None where there is one source.
        seconds: By part, all micro-batches together.
        passes: Seconds of the forward pass by stack of blocks, in order; a stack that is entered
            again has the number of the pass behind its name.
    """

    number: int
    source: int | None
    seconds: Mapping[str, float]
    passes: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStep:
    """The memory that a step took above what was taken before it.

    Attributes:
        number: The step's, from 0.
        source: Of its batch; None where there is one source.
        peaks: Bytes of the first micro-batch, of the later ones (0 if there are none), and of the
            update with what follows.
    """

    number: int
    source: int | None
    peaks: tuple[float, float, float]


def rehearse(
    trainer: Trainer, steps: Iterable[int], mark: Callable[[str], None]
) -> Iterator[int | None]:
    """Do steps as `Trainer.fit` does, but without log, checkpoints and validation.

    Args:
        trainer: Not in use otherwise.
        steps: The number of each, from 0: the objectives of that step are computed.
        mark: Called as each part of a step begins, and with "end".

    Yields:
        The source of each step, see `Trainer.sources`.
    """
    trainer.task.modules.train()
    trainer.precision = resolve_precision(trainer.config.precision, trainer.device)
    trainer.mark = mark
    loader = trainer.loader_factory(0)
    batches = iter(loader)
    clock, before = StepClock(trainer.config.global_batch_size), trainer.step
    try:
        for number in steps:
            trainer.step = number
            _, source = trainer._train_step(batches, clock, InterruptGuard())
            yield source
    finally:
        trainer.mark, trainer.step = unmarked, before
        for owner in {id(batches): batches, id(loader): loader}.values():
            close_loader(owner)


def time_steps(
    trainer: Trainer, steps: Sequence[int], clock: Callable[[], float] = time.perf_counter
) -> list[TimedStep]:
    """Do steps, and return what each took; the first one that a trainer does is slow.

    Args:
        trainer: Not in use otherwise.
        steps: The number of each, from 0.
        clock: Returns seconds, of the wall or of the processor.
    """
    on_gpu = trainer.device.type == "cuda"

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return clock()

    watch = _Watch(now)
    found = []
    with watch.hooked(trainer.task.modules):
        for number, source in zip(steps, rehearse(trainer, steps, watch.mark), strict=True):
            outside = watch.seconds["forward"] - sum(watch.passes.values())
            passes = {**watch.passes, OUTSIDE: outside}
            seconds = {str(part): watch.seconds[part] for part in PARTS}
            found.append(TimedStep(number=number, source=source, seconds=seconds, passes=passes))
            watch.clear()
    return found


@dataclass(slots=True)
class _Watch:
    """Adds up the seconds of parts, and of passes through stacks of blocks."""

    now: Callable[[], float]
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    passes: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _part: str = ""
    _since: float = 0.0
    _entries: Counter[str] = field(default_factory=Counter)
    _began: float = 0.0

    def mark(self, part: str) -> None:
        now = self.now()
        if self._part:
            self.seconds[self._part] += now - self._since
        self._part, self._since = ("" if part == "end" else part), now
        if part == "forward":
            self._entries.clear()

    def clear(self) -> None:
        self.seconds.clear()
        self.passes.clear()

    @contextmanager
    def hooked(self, modules: nn.Module) -> Iterator[None]:
        """Time the blocks, which are called as modules wherever they are used."""
        handles = []
        for name, module in modules.named_modules():
            if hasattr(module, "shard_entries"):
                stack, _, number = name.rpartition(".")
                handles += [
                    module.register_forward_pre_hook(self._enter),
                    module.register_forward_hook(self._leave(stack, number)),
                ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, inputs: object) -> None:
        if self._part == "forward":
            self._began = self.now()

    def _leave(self, stack: str, number: str) -> Callable[[nn.Module, object, object], None]:
        name = stack.removeprefix("model.").removesuffix(".blocks")

        def leave(module: nn.Module, inputs: object, output: object) -> None:
            if self._part == "forward":  # blocks are also computed again in the backward pass
                self._entries[f"{stack}.{number}"] += 1
                again = self._entries[f"{stack}.{number}"]
                self.passes[name if again == 1 else f"{name}, {again}"] += self.now() - self._began

        return leave


# ------------------------------------------------------------------------------------------ memory


def measure_memory(trainer: Trainer, steps: Sequence[int]) -> list[MemoryStep]:
    """Do steps, and return the memory of each; the first one that a trainer does has more.

    Args:
        trainer: Not in use otherwise.
        steps: The number of each, from 0.
    """
    if trainer.device.type == "cuda":
        return _memory_on_gpu(trainer, steps)
    found = []
    running = rehearse(trainer, steps, _annotate)
    try:
        for number in steps:
            with _profiled() as events:
                source = next(running)
            found.append(MemoryStep(number=number, source=source, peaks=_peaks(events)))
    finally:
        running.close()  # type: ignore[attr-defined]
    return found


def _annotate(part: str) -> None:
    with record_function(_MARK + part):
        pass


_MARK = "triptych: "


@contextmanager
def _profiled() -> Iterator[list[tuple[str, int]]]:
    """Collect the bytes that are taken (or, below 0, given back) and the marks, in order."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would print two lines each time
    events: list[tuple[str, int]] = []
    with profile(profile_memory=True) as found:
        yield events
    results: Any = found.kineto_results  # its own lists of events take ten times as long
    timed = [
        (event.start_ns(), event.name(), event.nbytes())
        for event in results.events()
        if event.name() == "[memory]" or event.name().startswith(_MARK)
    ]
    events += [(name.removeprefix(_MARK), size) for _, name, size in sorted(timed)]


def _peaks(events: Iterable[tuple[str, int]]) -> tuple[float, float, float]:
    """Return the peaks of the first micro-batch, of the later ones, and of the rest."""
    taken, batches, part = 0, 0, "data"
    peaks = [0.0, 0.0, 0.0]
    for name, size in events:
        if name != "[memory]":
            part = name
            batches += name == "data"
        taken += size
        index = 2 if part in ("update", "after_step", "end") else min(1, max(0, batches - 1))
        peaks[index] = max(peaks[index], taken)
    return peaks[0], peaks[1], peaks[2]


def _memory_on_gpu(trainer: Trainer, steps: Sequence[int]) -> list[MemoryStep]:
    device, found = trainer.device, []
    before, batches = 0, 0
    peaks = [0.0, 0.0, 0.0]

    def mark(part: str) -> None:
        nonlocal batches
        if part not in ("data", "update", "end"):
            return
        torch.cuda.synchronize(device)
        if batches:
            index = 2 if part == "end" else min(1, batches - 1)
            taken = torch.cuda.max_memory_allocated(device) - before
            peaks[index] = max(peaks[index], taken)
        batches += part == "data"
        torch.cuda.reset_peak_memory_stats(device)

    running = rehearse(trainer, steps, mark)
    try:
        for number in steps:
            torch.cuda.synchronize(device)
            before, batches, peaks[:] = torch.cuda.memory_allocated(device), 0, [0.0, 0.0, 0.0]
            source = next(running)
            found.append(
                MemoryStep(number=number, source=source, peaks=(peaks[0], peaks[1], peaks[2]))
            )
    finally:
        running.close()  # type: ignore[attr-defined]
    return found
