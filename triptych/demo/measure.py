"""What each part of the demo costs on this machine, by real steps at the real batch size."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

from triptych.core.console import Console
from triptych.demo.plan import shortened
from triptych.recipes.config import RunConfig
from triptych.train.metrics_log import METRICS_FILE, read_metrics
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.run import train_run

STEPS_OF_PHASE = 4
"""Steps of each phase; objectives that work every other step need pairs."""

TIMED_STEPS = 2
"""Of these steps, the last ones, which are timed: the first are slow."""

ALL_TASKS_OVER_RETRIEVAL = 2.0
"""Seconds to evaluate all tasks on an image over those of retrieval, whose work does not depend on
what a model has learned: 9 s for retrieval among 500 images of the demo, 9 s for all the rest."""


def time_steps(run: RunConfig, folder: Path) -> float:
    """Train a few steps of every phase, and return the seconds of a step, the mean over the run.

    A phase begins where an objective joins.

    Args:
        run: A run of any length; its other settings are kept.
        folder: Receives the model.
    """
    starts = sorted({weight.start_step for weight in run.weights} | {0})
    ends = [*starts[1:], run.train.max_steps]
    shares = [(end - start) / run.train.max_steps for start, end in zip(starts, ends, strict=True)]
    steps = STEPS_OF_PHASE * len(starts)
    trial = shortened(run, steps, run.train.max_steps)
    trial = replace(
        trial,
        train=replace(trial.train, log_every_steps=1, progress="off", tensorboard=False),
        weights=tuple(
            replace(w, start_step=STEPS_OF_PHASE * starts.index(w.start_step)) for w in run.weights
        ),
    )
    with _same_threads():
        train_run(trial, folder, console=Console(file=io.StringIO()))
    ends_s = [0.0, *(line["elapsed_s"] for line in read_metrics(folder / METRICS_FILE))]
    return mean_step_s([end - start for start, end in pairwise(ends_s)], shares)


def mean_step_s(steps_s: Sequence[float], shares: Sequence[float]) -> float:
    """Return the mean seconds of a step from those of a trial, weighted by the phases' shares."""
    total = 0.0
    for number, share in enumerate(shares):
        end = (number + 1) * STEPS_OF_PHASE
        timed = steps_s[end - TIMED_STEPS : end]
        total += share * sum(timed) / len(timed)
    return total


def time_evaluation(model: Path, run: RunConfig, most: int, rerank_top_k: int) -> float:
    """Return the seconds of all tasks on an image.

    Retrieval among a few images is slow, as all that is done first; what more images take counts.

    Args:
        model: A model folder of pre-training.
        run: Whose training data is searched.
        most: Images of the larger search.
        rerank_top_k: Candidates that ITM re-ranks.
    """
    few = max(1, most // 4)
    took = []
    for limit in (few, most):
        start = time.perf_counter()
        evaluate_model(
            model,
            "retrieval",
            run.data.train[0],
            limit=limit,
            rerank_top_k=rerank_top_k,
            max_bad_share=1.0,
        )
        took.append(time.perf_counter() - start)
    return ALL_TASKS_OVER_RETRIEVAL * max(1e-4, (took[1] - took[0]) / max(1, most - few))


@contextmanager
def _same_threads() -> Iterator[None]:
    """Restore the number of torch's threads, which a run may set."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
