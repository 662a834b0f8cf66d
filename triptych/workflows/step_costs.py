"""What a step of a run costs on this machine, by real steps of each phase: seconds, operations.

A phase begins where an objective joins or leaves.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from triptych.core.console import Console
from triptych.recipes.changes import shortened
from triptych.recipes.config import RunConfig
from triptych.train.metrics_log import METRICS_FILE, read_metrics
from triptych.workflows.run import train_run

STEPS_OF_PHASE = 4
"""Steps of each phase; objectives that work every other step need pairs."""

TIMED_STEPS = 2
"""Of these steps, the last ones, which are timed: the first are slow."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps in which the same objectives are trained.

    Attributes:
        start: Its first step, counted from 0.
        share: Its part of the run.
    """

    start: int
    share: float


def phases_of(run: RunConfig) -> list[Phase]:
    """Return the phases of a run, in order."""
    most = run.train.max_steps
    bounds = {0} | {w.start_step for w in run.weights} | {w.end_step or 0 for w in run.weights}
    starts = sorted(start for start in bounds if start < most)
    ends = [*starts[1:], most]
    return [Phase(start, (end - start) / most) for start, end in zip(starts, ends, strict=True)]


def trial_run(run: RunConfig, steps_of_phase: int = STEPS_OF_PHASE) -> RunConfig:
    """Return a run of so many steps of each phase, logged one by one."""
    phases = phases_of(run)
    places = {phase.start: index * steps_of_phase for index, phase in enumerate(phases)}
    steps = steps_of_phase * len(phases)
    trial = shortened(run, steps, run.train.max_steps)
    weights = tuple(
        replace(
            w,
            start_step=places.get(w.start_step, steps),
            end_step=None if w.end_step is None else places.get(w.end_step, steps + 1),
        )
        for w in run.weights
    )
    train = replace(trial.train, log_every_steps=1, progress="off", tensorboard=False)
    return replace(trial, train=train, weights=weights)


def time_steps(
    run: RunConfig,
    folder: Path,
    *,
    steps_of_phase: int = STEPS_OF_PHASE,
    timed: int = TIMED_STEPS,
) -> float:
    """Train a few steps of every phase, and return the seconds of a step, the mean over the run.

    Args:
        run: A run of any length; its other settings are kept.
        folder: Receives the model.
        steps_of_phase: Steps of each phase.
        timed: Of these, the last ones, which count.
    """
    with _same_threads():
        trial = trial_run(run, steps_of_phase)
        train_run(trial, folder, console=Console(file=io.StringIO()))
    ends_s = [0.0, *(line["elapsed_s"] for line in read_metrics(folder / METRICS_FILE))]
    shares = [phase.share for phase in phases_of(run)]
    return mean_of_step([end - start for start, end in pairwise(ends_s)], shares, timed)


def count_step_flops(
    run: RunConfig, folder: Path, *, steps_of_phase: int = STEPS_OF_PHASE
) -> float:
    """Train a few steps of every phase, and return the operations of a step, the mean over the run.

    Counted are the matrix products, convolutions and attention of the forward and backward pass, by
    torch's counter; a multiply-add is two operations. Of a run in several processes, what all of
    them compute together is counted in one. The optimizer's own products are excluded, as they are
    in the papers.

    Args:
        run: A run of any length.
        folder: Receives the model.
        steps_of_phase: Steps of each phase.
    """
    trial = trial_run(run, steps_of_phase)
    trial = replace(trial, train=replace(trial.train, num_processes=1))
    with _same_threads(), _flops_of_steps() as steps:
        train_run(trial, folder, console=Console(file=io.StringIO()))
    shares = [phase.share for phase in phases_of(run)]
    return mean_of_step(steps, shares, steps_of_phase)


def mean_of_step(
    steps: Sequence[float], shares: Sequence[float], counted: int = TIMED_STEPS
) -> float:
    """Return the mean of a number of each step of a trial, weighted by the phases' shares.

    Args:
        steps: The number for each step of the trial, all phases having equally many.
        shares: Of the phases.
        counted: Of each phase, the last so many steps count.
    """
    each = len(steps) // len(shares)
    total = 0.0
    for number, share in enumerate(shares):
        end = (number + 1) * each
        last = steps[end - counted : end]
        total += share * sum(last) / len(last)
    return total


@contextmanager
def _flops_of_steps() -> Iterator[list[float]]:
    """Count the operations of this process; the list grows by a number at each optimizer step."""
    steps: list[float] = []
    done = 0

    def before(*_: Any) -> None:
        steps.append(float(counter.get_total_flops() - done))

    def after(*_: Any) -> None:
        nonlocal done
        done = counter.get_total_flops()

    hooks = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
            yield steps
    finally:
        for hook in hooks:
            hook.remove()


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))  # type: ignore[no-untyped-call]


_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""The processor's fused attention, which torch's counter does not know."""


@contextmanager
def _same_threads() -> Iterator[None]:
    """Restore the number of torch's threads, which a run may set."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
