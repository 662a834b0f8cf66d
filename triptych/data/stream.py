"""Batches from records: repeatable with any number of worker processes, and from any step on."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any, Protocol

import cv2
import torch
from torch import Tensor
from torch._C import _error_if_any_worker_fails  # what DataLoader's own handler calls
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from triptych.core.config import MAX_BATCH_SIZE, MAX_WORKERS, check, check_range
from triptych.core.errors import ConfigError, DataError
from triptych.core.processes import end_with_parent, stop_signals
from triptych.data.batches import BatchBuilder, Built
from triptych.data.collate.base import AnyCollator
from triptych.data.order import SampleOrder
from triptych.data.records import Record
from triptych.data.skips import SkipLog
from triptych.data.transforms.pipeline import ImageTransform
from triptych.data.windows import windows_of

Batch = dict[str, Tensor]


def build_loader(
    records: Sequence[Record],
    collator: AnyCollator[Any],
    transform: ImageTransform,
    *,
    seed: int,
    local_batch_size: int,
    train: bool,
    num_workers: int = 0,
    skip_log: SkipLog | None = None,
    cache_mib: int = 0,
    start_step: int = 0,
    prefetch: int = 2,
    rank: int = 0,
    world_size: int = 1,
    shuffle_window: int | None = None,
) -> BatchLoader:
    """Return an iterable of batches.

    The batch of a step depends on the seed, the step and the data alone: not on the number of
    workers, on the cache, or on where iteration began.

    Args:
        records: The dataset.
        collator: Makes text, box and key tensors.
        transform: Prepares the images.
        seed: Seed of the run.
        local_batch_size: Samples of a batch in this process.
        train: True goes on for ever over permuted epochs and replaces what cannot be used by
            another sample. False gives every record once, in order, excludes what cannot be
            used, and may end with a smaller batch.
        num_workers: Processes that prepare batches; 0 prepares them in this one.
        skip_log: Receives everything that cannot be used; None drops it.
        cache_mib: Memory for decoded images in each process, in MiB.
        start_step: The first batch's step.
        prefetch: Batches that each worker prepares ahead.
        rank: Number of this process among those that train together.
        world_size: How many processes train together.
        shuffle_window: In training, shards whose samples are mixed with one another; None mixes
            all samples, as does data that is in no shards.

    Raises:
        ConfigError: A number is out of range, or the transform moves boxes that are needed.
        DataError: There is no record.
    """
    check_range("local_batch_size", local_batch_size, 1, MAX_BATCH_SIZE)
    check(cache_mib >= 0, "cache_mib", cache_mib, "be at least 0")
    check_source(records, collator, transform)
    windows = windows_of(records, shuffle_window if train else None)
    return BatchLoader(
        order=SampleOrder(len(records), local_batch_size, seed, train, rank, world_size, windows),
        builder=BatchBuilder(records, collator, transform, seed, train, cache_mib),
        num_workers=num_workers,
        skip_log=skip_log,
        start_step=start_step,
        prefetch=prefetch,
    )


def check_source(
    records: Sequence[Record],
    collator: AnyCollator[Any],
    transform: ImageTransform,
) -> None:
    """Reject a dataset that cannot give a batch.

    Raises:
        ConfigError: The transform moves boxes that are needed.
        DataError: There is no record.
    """
    if not records:
        raise DataError("the dataset has no record: see `triptych data check`")
    if collator.needs_boxes and transform.train and not transform.config.keeps_boxes:
        raise ConfigError(
            "boxes cannot follow this transform: set crop_scale to None and "
            "randaugment_geometric to False"
        )


class Order(Protocol):
    """Which samples make up which batch."""

    @property
    def num_batches(self) -> int | None:
        """How many batches there are; None for no end."""
        ...

    def batch(self, step: int, /) -> list[tuple[int, int]]:
        """Return (epoch, index) of each sample of a batch, steps counted from 0."""
        ...

    def lead(self, step: int, /) -> tuple[int, int] | None:
        """Return (epoch, index) of the sample that decides for all processes; None: its own."""
        ...


class Builder(Protocol):
    """Makes batches."""

    def build(
        self,
        samples: Sequence[tuple[int, int]],
        note: Callable[[int], None] | None = None,
        lead: tuple[int, int] | None = None,
    ) -> Built:
        """Make the batch of some samples, each (epoch, index)."""
        ...

    def name(self, index: int) -> str:
        """Return how messages call a record."""
        ...


@dataclass(slots=True)
class BatchLoader:
    """An iterable of batches (dicts of tensors); `iter` begins at `start_step` each time.

    The iterator is a generator: `close()` ends its worker processes, and so does dropping it.
    With `pin_memory` batches lie in pinned memory, from which a GPU copies while the next is made.
    """

    order: Order
    builder: Builder
    num_workers: int = 0
    skip_log: SkipLog | None = None
    start_step: int = 0
    prefetch: int = 2
    pin_memory: bool = False

    def __post_init__(self) -> None:
        """Reject counts out of range."""
        check_range("num_workers", self.num_workers, 0, MAX_WORKERS)
        check(self.start_step >= 0, "start_step", self.start_step, "be at least 0")
        check_range("prefetch", self.prefetch, 1, 1024)

    @property
    def num_batches(self) -> int | None:
        """How many batches `iter` gives at most; None in training, which does not end."""
        total = self.order.num_batches
        return None if total is None else max(total - self.start_step, 0)

    def __iter__(self) -> Generator[Batch, None, None]:
        """Yield batches.

        Raises:
            DataError: Too much of the data is bad, or a sample failed; the message names it.
        """
        made = self._made_here() if self.num_workers == 0 else self._made_by_workers()
        try:
            for built in made:
                self._report(built)
                if built.batch is not None:  # None: nothing in this batch could be used
                    yield built.batch
        finally:
            made.close()

    def _report(self, built: Built) -> None:
        if self.skip_log is not None:
            self.skip_log.count_ok(built.num_samples)
            self.skip_log.add_all(built.skipped)
        if built.error is not None:
            error = DataError(built.error)
            error.add_note(built.traceback)
            raise error

    def _made_here(self) -> Generator[Built, None, None]:
        task = _BuildTask(self.order, self.builder)
        for step in _Steps(self.start_step, self.order.num_batches):
            built = task[step]
            yield built.pin_memory() if self.pin_memory else built

    def _made_by_workers(self) -> Generator[Built, None, None]:
        # Forking a process whose tokenizer has used threads would print a warning.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        progress = torch.full((self.num_workers, 2), -1)  # process id and index of each worker
        progress.share_memory_()  # type: ignore[no-untyped-call]
        iterator = self._start_workers(_BuildTask(self.order, self.builder, progress))
        try:
            while True:
                try:
                    with _told_of_dead_workers():
                        built = next(iterator)
                except StopIteration:
                    return
                except RuntimeError as error:
                    raise DataError(self._crash_message(error, progress)) from error
                except KeyboardInterrupt:  # a worker may wait for a disk that never answers
                    for worker in iterator._workers:
                        worker.kill()
                    raise
                yield built
        finally:
            # Dropping the iterator does this too, but only once no traceback refers to it.
            iterator._shutdown_workers()

    def _start_workers(self, task: _BuildTask) -> Any:
        with _told_of_dead_workers(), warnings.catch_warnings():
            # More workers than cores; a fork of a process with threads (Python 3.12 on).
            warnings.filterwarnings("ignore", message=".*worker processes in total")
            warnings.filterwarnings("ignore", message=".*multi-threaded.*fork")
            return iter(
                DataLoader(
                    task,
                    batch_size=None,
                    sampler=_Steps(self.start_step, self.order.num_batches),
                    num_workers=self.num_workers,
                    collate_fn=_unchanged,
                    worker_init_fn=_set_up_worker,
                    prefetch_factor=self.prefetch,
                    pin_memory=self.pin_memory,  # by a thread of this process
                    multiprocessing_context="fork" if sys.platform == "linux" else "spawn",
                    # Without its own generator it would draw from the model's random state.
                    generator=torch.Generator(),
                )
            )

    def _crash_message(self, error: RuntimeError, progress: Tensor) -> str:
        """Say which records the dead workers were at."""
        dead = {int(number) for number in re.findall(r"\d+", str(error))}
        rows = [(pid, index) for pid, index in progress.tolist() if pid in dead and index >= 0]
        rows = rows or [(pid, index) for pid, index in progress.tolist() if index >= 0]
        at = "; ".join(f"process {pid} at {self.builder.name(index)}" for pid, index in rows)
        return f"a data worker died ({error}): {at or 'before its first record'}"


@dataclass(slots=True)
class _BuildTask(Dataset[Built]):
    """Maps a step to its batch, in this process or in a worker."""

    order: Order
    builder: Builder
    progress: Tensor | None = field(default=None)

    def __getitem__(self, step: int) -> Built:
        try:
            batch, lead = self.order.batch(step), self.order.lead(step)
            return self.builder.build(batch, self._noter(), lead)
        except DataError as error:
            return Built(error=str(error), traceback=traceback.format_exc())

    def _noter(self) -> Callable[[int], None] | None:
        """Return what writes the index of the current sample where the main process sees it."""
        worker = get_worker_info()
        if self.progress is None or worker is None:
            return None
        row = self.progress[worker.id].numpy()
        row[0] = os.getpid()
        return partial(row.__setitem__, 1)


class _Steps(Sampler[int]):
    """Steps from `start`, up to `stop` or for ever."""

    def __init__(self, start: int, stop: int | None) -> None:
        self.start, self.stop = start, stop

    def __iter__(self) -> Iterator[int]:
        step = self.start
        while self.stop is None or step < self.stop:
            yield step
            step += 1


@contextmanager
def _told_of_dead_workers() -> Iterator[None]:
    """Let a worker's death raise RuntimeError here, and nowhere else.

    DataLoader installs such a signal handler for good, and it would raise in the middle of a
    training step. Signal handlers exist in the main thread only; elsewhere DataLoader's polling,
    every 5 s, must do.
    """
    previous = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    if previous is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def check_workers(signum: int, frame: FrameType | None) -> None:
        _error_if_any_worker_fails()
        if callable(previous):
            previous(signum, frame)

    signal.signal(signal.SIGCHLD, check_workers)
    try:
        _error_if_any_worker_fails()  # one may have died before
        yield
    finally:
        signal.signal(signal.SIGCHLD, previous)


def _unchanged(built: Any) -> Any:
    return built


def _set_up_worker(worker_id: int) -> None:
    """Leave signals to the main process, end when it is killed, and use one thread."""
    del worker_id
    for number in stop_signals():  # Ctrl-C and a closed terminal reach the whole group
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the trainer's handler, which saves
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before any thread starts
        threading.Thread(target=_end_if_told, args=(os.getppid(),), daemon=True).start()
    end_with_parent()
    cv2.setNumThreads(0)


def _end_if_told(parent: int) -> None:
    """End this worker at SIGTERM of its main process, and of no other.

    Torchrun and Slurm send SIGTERM to every process of a run. The main process then still needs
    batches until it has saved.
    """
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.kill(os.getpid(), signal.SIGTERM)
