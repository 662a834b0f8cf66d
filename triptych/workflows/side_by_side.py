"""Several small runs at once, one process and an equal share of the cores each.

Small models do not keep two cores busy: two runs of one thread each finish sooner than two runs of
two threads, one after the other.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TextIO

import torch

from triptych.core.console import Console
from triptych.core.machine import num_cores
from triptych.distributed.env import forward_signals
from triptych.recipes.config import RunConfig
from triptych.workflows.run import finish_run, is_finished


def train_side_by_side(
    runs: Mapping[str, RunConfig],
    folders: Mapping[str, Path],
    *,
    num_threads: int | None = None,
    console: Console | None = None,
) -> None:
    """Train each run in its folder; together on a CPU with a core for each, else in turn.

    Finished runs are kept, and interrupted ones go on from their last checkpoint.

    Runs at once get the signals that ask this process to stop, so that each saves and stops.

    Args:
        runs: Configs by name.
        folders: Run folders by the same names.
        num_threads: CPU threads for all of them; None for the machine's cores.
        console: Where runs in turn report; runs at once print plain lines that begin with the name.

    Raises:
        TriptychError: What a run raised.
        TrainingInterrupted: SIGINT, SIGTERM or SIGHUP came; each run that had begun was saved.
        KeyboardInterrupt: It came before the processes were ready.
    """
    share = threads_at_once(len(runs), num_threads)
    unfinished = {name: run for name, run in runs.items() if not is_finished(folders[name])}
    if share is None:
        for name, config in unfinished.items():
            finish_run(config, folders[name], console=console)
        return
    if not unfinished:
        return
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    children: list[BaseProcess] = []
    with (
        ProcessPoolExecutor(len(unfinished), mp_context=context) as pool,
        forward_signals(children) as received,
    ):
        started = []
        for name, config in unfinished.items():
            run = _with_threads(config, share)
            started.append(pool.submit(_train_one, name, run, folders[name]))
            children[:] = [p for p in multiprocessing.active_children() if p not in others]
        try:
            for future in started:
                future.result()
        except BrokenProcessPool as error:
            if received:
                raise KeyboardInterrupt from error
            raise


def threads_at_once(num_runs: int, num_threads: int | None = None) -> int | None:
    """Return the threads of each of several runs; None where they run one after the other.

    Args:
        num_runs: How many there are.
        num_threads: CPU threads for all of them; None for the machine's cores.
    """
    cores = num_threads or num_cores()
    if torch.cuda.is_available() or num_runs < 2 or cores < num_runs:
        return None
    return cores // num_runs


def _with_threads(config: RunConfig, num_threads: int) -> RunConfig:
    return replace(config, train=replace(config.train, num_threads=num_threads, progress="plain"))


def _train_one(name: str, config: RunConfig, folder: Path) -> None:
    """Train in a process of its own."""
    lines = PrefixedLines(sys.stdout, f"{name} | ")
    finish_run(config, folder, console=Console(file=lines, width=160, force_terminal=False))  # type: ignore[arg-type]


class PrefixedLines:
    """A text file that puts a name in front of every line."""

    def __init__(self, inner: TextIO, prefix: str) -> None:
        self._inner, self._prefix = inner, prefix

    def write(self, text: str) -> int:
        """Write text, whose lines get the name."""
        lines = text.splitlines(keepends=True)
        self._inner.write("".join(self._prefix + line for line in lines))
        return len(text)

    def flush(self) -> None:
        """Pass on what is buffered."""
        self._inner.flush()
