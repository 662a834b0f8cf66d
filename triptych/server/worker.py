"""One thread that computes, and requests that wait for it and run together where they can.

A job is the items of one request. Its images are decoded by other threads, one job after the
other, while there is room for their pixels; so memory is bounded by what may wait, not by what
arrives. Of the jobs that are decoded, the computing thread takes the oldest and those of the same
kind after it, up to a number of items. Clients that have just been answered often ask again at
once: while fewer jobs are ready than were here with the last batch, it waits for a part of the time
that this batch took. So a lone client never waits, and many clients are not split into halves
that take turns, each batch with the fixed cost of a whole one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from triptych.core.errors import TriptychError

DECODERS = 2
WAIT_SHARE = 0.25
"""Of the time of a batch that the next one may wait to become larger."""

PIXEL_ROOM = 2
"""Requests of the largest size whose decoded images may be in memory."""

Answers = list[Any]
log = logging.getLogger("triptych.server")


class Busy(Exception):  # noqa: N818 - no error, but a state
    """There is no room for another request, now."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What may run together.

    Attributes:
        key: Of the model, the verb and its options; equal for what may run together.
        label: Of the verb, for metrics.
        ask: From prepared items to as many answers.
    """

    key: Hashable
    label: str
    ask: Callable[[list[Any]], Answers]


@dataclass(eq=False, slots=True)
class Job:
    """The items of one request.

    Attributes:
        kind: What they may run with.
        prepare: Decodes the images and returns the items.
        size: How many items.
        pixels: Of all images, decoded.
        future: Of as many answers.
        arrived: When, by the monotonic clock.
        items: What `prepare` returned; None before.
        is_preparing: Whether it was given to a decoder.
    """

    kind: Kind
    prepare: Callable[[], list[Any]]
    size: int
    pixels: int
    future: Future[Answers] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    items: list[Any] | None = None
    is_preparing: bool = False


@dataclass(frozen=True, slots=True)
class _Pace:
    """The last batch of a verb: its jobs and those that were waiting at its end, and its time."""

    jobs: int = 1
    seconds: float = 0.0


class Worker:
    """Answers jobs, one batch after the other."""

    def __init__(
        self,
        *,
        max_batch: int,
        max_wait_s: float,
        queue: int,
        max_pixels: int,
        observe: Callable[[str, int], None] = lambda label, items: None,
    ) -> None:
        """Start the threads.

        Args:
            max_batch: Items that are computed together; a request of more is not divided.
            max_wait_s: How long ready jobs wait for others, at most.
            queue: Jobs that may wait or run at once.
            max_pixels: Of the images of a job, at most.
            observe: Is told the label and the items of each batch.
        """
        self._max_batch, self._max_wait_s, self._queue = max_batch, max_wait_s, queue
        self._pixel_room, self._observe = PIXEL_ROOM * max_pixels, observe
        self._changed = threading.Condition()
        self._jobs: dict[Job, None] = {}  # in the order of arrival, until they are answered
        self._closed = False
        self._paces: dict[str, _Pace] = {}
        self._idle_since = time.monotonic()
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="triptych-decode")
        self._thread = threading.Thread(target=self._work, name="triptych-compute", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return how many jobs wait or run."""
        return len(self._jobs)

    @property
    def is_alive(self) -> bool:
        """Whether jobs are taken and computed."""
        return self._thread.is_alive() and not self._closed

    def submit(
        self, kind: Kind, prepare: Callable[[], list[Any]], *, size: int, pixels: int = 0
    ) -> Future[Answers]:
        """Take a job. To cancel its future frees its place.

        Args:
            kind: What it may run with.
            prepare: Called once, by another thread: decodes images and returns the items.
            size: How many items.
            pixels: Of all images, decoded; 0 where there are none.

        Raises:
            Busy: As many jobs as may are here already, or the server is stopping.
        """
        job = Job(kind, prepare, size, pixels)
        with self._changed:
            if self._closed:
                raise Busy("the server is stopping: ask again when it has started")
            if len(self._jobs) >= self._queue:
                raise Busy(f"{self._queue} requests are being answered: ask again later")
            self._jobs[job] = None
        job.future.add_done_callback(lambda _: self._forget(job))
        if pixels:
            self._start_decoders()
        else:
            job.is_preparing = True
            self._prepare(job)
        return job.future

    def close(self, timeout_s: float) -> bool:
        """Take no more jobs, answer those that are here, and return whether this was in time."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        self._decoders.shutdown(wait=False, cancel_futures=True)
        return not self._thread.is_alive()

    def _forget(self, job: Job) -> None:
        """Drop a job that was answered or cancelled, so that others have its place."""
        with self._changed:
            self._jobs.pop(job, None)
            self._changed.notify_all()
        self._start_decoders()

    def _start_decoders(self) -> None:
        """Give jobs to decoders, in order, while there is room for their pixels."""
        started = []
        with self._changed:
            room = self._pixel_room - sum(job.pixels for job in self._jobs if job.is_preparing)
            for job in self._jobs:
                if job.is_preparing:
                    continue
                if job.pixels > room and room < self._pixel_room:
                    break
                job.is_preparing = True
                room -= job.pixels
                started.append(job)
        for job in started:
            with suppress(RuntimeError):  # after the end of the pool nobody waits
                self._decoders.submit(self._prepare, job)

    def _prepare(self, job: Job) -> None:
        if job.future.cancelled():
            return
        try:
            items = job.prepare()
        except BaseException as error:
            _fail(job, error)
            return
        with self._changed:
            job.items = items
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            batch = self._next_batch()
            if batch is None:
                return
            self._observe(batch[0].kind.label, sum(job.size for job in batch))
            begun = time.monotonic()
            _answer(batch)
            self._idle_since = time.monotonic()
            label, number = batch[0].kind.label, len(batch)
            del batch  # its images, while nothing runs
            with self._changed:
                number += sum(job.kind.label == label for job in self._jobs)
                self._paces[label] = _Pace(number, self._idle_since - begun)

    def _next_batch(self) -> list[Job] | None:
        """Wait for jobs that may run together; None at the end."""
        with self._changed:
            while True:
                ready = [job for job in self._jobs if job.items is not None]
                if not ready:
                    if self._closed and not self._jobs:
                        return None
                    self._changed.wait()
                    continue
                batch = _together(ready, self._max_batch)
                left = self._wait_s(batch)
                if left <= 0 or self._closed or len(ready) > len(batch):
                    return batch
                self._changed.wait(left)

    def _wait_s(self, batch: Sequence[Job]) -> float:
        """Return how long to wait for more jobs, from now."""
        pace = self._paces.get(batch[0].kind.label, _Pace())
        if len(batch) >= pace.jobs or sum(job.size for job in batch) >= self._max_batch:
            return 0.0
        since = max(batch[0].arrived, self._idle_since)
        most = min(self._max_wait_s, WAIT_SHARE * pace.seconds)
        return since + most - time.monotonic()


def _together(ready: Sequence[Job], max_items: int) -> list[Job]:
    """Return the oldest job and those of its kind that fit in a batch with it."""
    batch, items = [ready[0]], ready[0].size
    for job in ready[1:]:
        if job.kind.key == ready[0].kind.key and items + job.size <= max_items:
            batch.append(job)
            items += job.size
    return batch


def _answer(batch: Sequence[Job]) -> None:
    """Compute a batch; where it fails, its halves, so that only what is wrong in it fails."""
    batch = [job for job in batch if not job.future.done()]
    if not batch:
        return
    items = [item for job in batch for item in job.items or ()]
    try:
        answers = batch[0].kind.ask(items)
        if len(answers) != len(items):
            raise RuntimeError(f"{batch[0].kind.label}: {len(answers)} answers to {len(items)}")
    except Exception as error:
        if len(batch) > 1:
            middle = len(batch) // 2
            _answer(batch[:middle])
            _answer(batch[middle:])
        else:
            _fail(batch[0], error)
        return
    start = 0
    for job in batch:
        with suppress(InvalidStateError):  # its client has left
            job.future.set_result(answers[start : start + job.size])
        start += job.size


def _fail(job: Job, error: BaseException) -> None:
    if not isinstance(error, TriptychError):
        log.error("%s failed", job.kind.label, exc_info=error)
    with suppress(InvalidStateError):  # its client has left
        job.future.set_exception(error)
