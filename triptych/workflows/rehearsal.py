"""Steps of a run in several settings, at a small and a larger batch size, as lines."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from triptych.recipes.config import RunConfig
from triptych.tasks.registry import build_task
from triptych.train.estimate import count_state
from triptych.train.forecast import (
    Line,
    Point,
    StateBytes,
    StepKind,
    StepLines,
    num_chunks,
    step_kinds,
)
from triptych.train.optim import is_block_matrix
from triptych.train.precision import Precision
from triptych.train.rehearsal import PARTS, MemoryStep, TimedStep, measure_memory, time_steps
from triptych.train.step import RECOMPUTE_SWITCH, set_recompute
from triptych.train.trainer import Trainer
from triptych.train.work import Recompute
from triptych.workflows.prepared import PreparedRun

LONG_STEP_S = 2.0
"""Seconds that a step of two micro-batches may take where it is measured."""

WARM_STEPS, TIMED_STEPS = 3, 5
"""Of each kind of step in the run's own setting: those that are not counted, since a trainer's
first ones allocate memory and choose kernels, and those that are timed. In other settings there are
fewer of both."""

FEW = 8
"""Samples from which on one batch is as good as another to measure memory."""

NO_WARMUP_END = 10**9
"""Warm-up steps of measured steps, so that random weights meet no high learning rate."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How steps are computed.

    Attributes:
        precision: Of the forward pass.
        recompute: What the backward pass computes again.
        cached: Whether there is a gradient cache.
    """

    precision: Precision
    recompute: Recompute
    cached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """A setting, measured.

    Attributes:
        setting: Which one.
        lines: Memory and time.
        sizes: Samples of the micro-batches that were measured.
        parts: Seconds of a micro-batch of the largest of them by part of a step.
        passes: Seconds of its forward pass by stack of blocks.
    """

    setting: Setting
    lines: StepLines
    sizes: tuple[int, ...]
    parts: dict[str, float]
    passes: dict[str, float]


@dataclass(slots=True)
class Rehearsal:
    """Measures steps of one prepared run.

    Attributes:
        run: What is measured.
        folder: Where a trainer may write.
        most: Samples of the largest micro-batch to measure.
        clock: Returns seconds, of the wall or of the processor.
        limit: Bytes above which no larger batch is measured.
        kinds: Of steps.
        sizes: Of the micro-batches that are measured in each setting; known after `begin`.
        state: Bytes that do not depend on the batch; known after `begin`.
    """

    run: PreparedRun
    folder: Path
    most: int
    limit: float
    clock: Callable[[], float] = time.perf_counter
    kinds: list[StepKind] = field(default_factory=list)
    sizes: tuple[int, ...] = ()
    state: StateBytes | None = None
    _heaviest: StepKind | None = None
    _over_heaviest: float = 1.0

    def begin(self, setting: Setting) -> Rehearsed:
        """Measure the run's own setting in all kinds of steps, after a look at a few samples.

        The look decides which batch sizes are measured, here and in other settings.
        """
        size = min(2, self.most)
        trainer = self._trainer(setting, size, size if setting.cached else None)
        self.kinds = step_kinds(trainer.objectives, self.run.config.train.max_steps)
        look = self._look(setting, size)
        if look.allows(8, self):  # two samples say little of what a sample costs in a larger batch
            size, look = 8, self._look(setting, 8)
        while look.allows(2 * size, self):
            size *= 2
        # Far apart, so that what one measurement is off by counts little in a line beyond them.
        self.sizes = (size // 4, size) if size >= 4 else (size,)
        found = self._tried(setting, self.kinds)
        self._heaviest = max(self.kinds, key=lambda kind: found[-1].by_kind[kind.number][0])
        alone = found[-1].by_kind[self._heaviest.number][1]
        self._over_heaviest = found[-1].micro_s / alone
        return self._rehearsed(setting, found, 1.0)

    def _look(self, setting: Setting, samples: int) -> _Look:
        chunk = samples if setting.cached else None
        trial = self._measure(setting, samples, chunk, self.kinds[-1:])
        return _Look(samples, 2 * trial.micro_s, max(trial.peaks))

    def measure(self, setting: Setting) -> Rehearsed:
        """Measure another setting, in the kind of step that takes most memory."""
        assert self._heaviest is not None, "begin comes first"
        return self._rehearsed(setting, self._tried(setting, [self._heaviest]), self._over_heaviest)

    def _tried(self, setting: Setting, kinds: Sequence[StepKind]) -> list[_Trial]:
        tries: list[tuple[int, int | None]] = [(size, None) for size in self.sizes]
        if setting.cached:
            most = self.sizes[-1]
            half, quarter = max(1, most // 2), max(1, most // 4)
            tries = [(half, quarter), (most, quarter), (most, half)]
        return [self._measure(setting, size, chunk, kinds) for size, chunk in tries]

    def settings(self, config: RunConfig, precisions: Sequence[Precision]) -> list[Setting]:
        """Return the settings that a run can have, its own first."""
        recomputes: list[Recompute] = ["none", "selective", "full"]
        able = any(hasattr(m, RECOMPUTE_SWITCH) for m in self.run.task.modules.modules())
        recomputes = recomputes[recomputes.index(config.train.recompute) :] if able else ["none"]
        chunk = getattr(config.task, "chunk_size", None)
        caches = [True] if chunk is not None else [False]
        if chunk is None and hasattr(config.task, "chunk_size") and self.most >= 4:
            caches.append(True)
        return [Setting(p, r, c) for c in caches for p in precisions for r in recomputes]

    def _trainer(
        self, setting: Setting, samples: int, chunk: int | None, micro_batches: int = 2
    ) -> Trainer:
        config = self.run.config
        if hasattr(config.task, "chunk_size"):
            config = replace(config, task=replace(config.task, chunk_size=chunk))  # type: ignore[type-var]
        config = replace(
            config,
            train=replace(
                config.train,
                global_batch_size=micro_batches * samples,
                micro_batch_size=samples,
                precision=setting.precision,
                recompute=setting.recompute,
                num_processes=1,
            ),
            optim=replace(config.optim, warmup_steps=NO_WARMUP_END),
            data=replace(config.data, num_workers=0),
        )
        task = self.run.task
        if hasattr(config.task, "chunk_size"):
            task = build_task(
                config.task, self.run.model, self.run.tokenizer, self.run.data.records
            )
        trainer = self.run.trainer(config, self.folder, task)
        if any(hasattr(module, RECOMPUTE_SWITCH) for module in task.modules.modules()):
            set_recompute(task.modules, setting.recompute)
        return trainer

    def _known(self) -> StateBytes:
        assert self.state is not None, "begin has measured something"
        return self.state

    def _measure(
        self, setting: Setting, samples: int, chunk: int | None, kinds: Sequence[StepKind]
    ) -> _Trial:
        gc.collect()  # of the last trainer's moments
        trainer = self._trainer(setting, samples, chunk, 1)
        sources = len(trainer.sources.sources)
        numbers = [kind.number for kind in kinds]
        own = self._heaviest is None  # of other settings less is asked
        each = numbers * max(1, sources)
        warm = each * (WARM_STEPS if own else 1)
        steps = warm + each * (TIMED_STEPS if own else 3)
        alone = time_steps(trainer, steps, self.clock)[len(warm) :]
        del trainer
        gc.collect()
        # Several micro-batches can cost more: losses that compare them all encode them first.
        trainer = self._trainer(setting, samples, chunk)
        timed = time_steps(trainer, steps, self.clock)[len(warm) :]
        repeats = 2 if own and samples < FEW else 1
        memory = measure_memory(trainer, numbers * max(repeats, 2 * sources))
        if self.state is None:
            muon = trainer.optim_config.muon_learning_rate is not None
            modules = trainer.task.modules
            count = count_state(modules, is_block_matrix) if muon else count_state(modules)
            self.state = StateBytes.of(trainer, count)
        shares = {kind.number: kind.share for kind in kinds}
        ratios = [
            1.0 if source.config.ratio is None else source.config.ratio
            for source in self.run.data.sources
        ]
        return _Trial.of(samples, chunk, alone, timed, memory, shares, ratios)

    def _rehearsed(self, setting: Setting, trials: Sequence[_Trial], share: float) -> Rehearsed:
        def line(value: Callable[[_Trial], float]) -> Line:
            return Line.through([Point(t.samples, t.chunk, value(t)) for t in trials])

        def time_line(value: Callable[[_Trial], float]) -> Line:
            return Line.through(
                [Point(t.samples, num_chunks(t.samples, t.chunk), share * value(t)) for t in trials]
            )

        last = trials[-1]
        return Rehearsed(
            setting=setting,
            lines=StepLines(
                first=line(lambda t: t.peaks[0]),
                later=line(lambda t: t.peaks[1]),
                update=line(lambda t: t.peaks[2]),
                alone_s=time_line(lambda t: t.parts["forward"] + t.parts["backward"]),
                micro_s=time_line(lambda t: t.micro_s),
                data_s=Line.through([Point(last.samples, None, last.parts["data"])]),
                update_s=last.parts["update"] + last.parts["after_step"],
            ),
            sizes=tuple(dict.fromkeys(t.samples for t in trials)),
            parts=last.parts,
            passes=last.passes,
        )


@dataclass(frozen=True, slots=True)
class _Look:
    """What a step of two micro-batches took, of so many samples each."""

    samples: int
    step_s: float
    peak: float

    def allows(self, samples: int, rehearsal: Rehearsal) -> bool:
        """Return whether larger ones are short and fit, if a sample costs as much in them."""
        more = samples / self.samples
        room = rehearsal.limit - rehearsal._known().resident
        return (
            self.samples < samples <= rehearsal.most
            and more * self.step_s <= LONG_STEP_S
            and more * self.peak <= room
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """Steps of one batch size.

    Seconds are means of the steps of a kind without its fastest and its slowest one, joined by the
    kinds' shares; peaks are means of the steps of a kind, and of these the largest.
    """

    samples: int
    chunk: int | None
    peaks: tuple[float, float, float]
    parts: dict[str, float]
    passes: dict[str, float]
    micro_s: float
    by_kind: dict[int, tuple[float, float]]

    @classmethod
    def of(
        cls,
        samples: int,
        chunk: int | None,
        alone: Sequence[TimedStep],
        timed: Sequence[TimedStep],
        memory: Sequence[MemoryStep],
        shares: dict[int, float],
        ratios: Sequence[float],
    ) -> _Trial:
        """Join steps.

        Args:
            samples: Of a micro-batch.
            chunk: Of the gradient cache.
            alone: Steps of one micro-batch.
            timed: Steps of two.
            memory: Other steps.
            shares: Of all steps, by the number of a step of each kind.
            ratios: How often each source is drawn.
        """

        def mean(
            value: Callable[[TimedStep], float],
            steps: Sequence[TimedStep],
            only: int | None = None,
        ) -> float:
            found: dict[tuple[int, int | None], list[TimedStep]] = {}
            for step in sorted(steps, key=lambda t: sum(t.seconds.values())):
                if only in (None, step.number):
                    found.setdefault((step.number, step.source), []).append(step)
            weights = {
                key: shares[key[0]] * (1.0 if key[1] is None else ratios[key[1]]) for key in found
            }
            means = {
                key: fmean(value(step) for step in (typical[1:-1] or typical))
                for key, typical in found.items()
            }
            return sum(w * means[key] for key, w in weights.items()) / sum(weights.values())

        def compute(step: TimedStep) -> float:
            return step.seconds["forward"] + step.seconds["backward"]

        groups: dict[tuple[int, int | None], list[MemoryStep]] = {}
        for watched in memory:
            groups.setdefault((watched.number, watched.source), []).append(watched)
        peaks = {
            key: [fmean(step.peaks[i] for step in steps) for i in range(3)]
            for key, steps in groups.items()
        }
        parts = {str(part): mean(lambda t, p=part: t.seconds[p], alone) for part in PARTS}  # type: ignore[misc]
        names = dict.fromkeys(name for step in alone for name in step.passes)
        passes = {n: mean(lambda t, n=n: t.passes.get(n, 0.0), alone) for n in names}  # type: ignore[misc]
        by_kind = {
            number: (
                max(each[0] for (kind, _), each in peaks.items() if kind == number),
                mean(compute, timed, number) / 2,
            )
            for number in shares
        }
        largest = [max(each[index] for each in peaks.values()) for index in range(3)]
        return cls(
            samples=samples,
            chunk=chunk,
            peaks=(largest[0], largest[1], largest[2]),
            parts=parts,
            passes=passes,
            micro_s=mean(compute, timed) / 2,
            by_kind=by_kind,
        )
