"""Start the processes that train together, and identify this one."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import default_pg_timeout

from triptych.core.errors import TriptychError
from triptych.core.processes import end_with_parent, let_go_of_closed_terminals, stop_signals

T = TypeVar("T")


def rank() -> int:
    """Return the number of this process among those that train together, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this process writes files and reports."""
    return rank() == 0


def local_rank() -> int:
    """Return the number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", rank()))


def local_world_size() -> int:
    """Return how many of the processes that train together run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def launched() -> bool:
    """Return whether a launcher such as `torchrun` has started this process, alone or not."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def leads() -> bool:
    """Return `is_main()`, also where a launcher's processes have not joined each other yet."""
    waiting = launched() and not (dist.is_available() and dist.is_initialized())
    return int(os.environ["RANK"]) == 0 if waiting else is_main()


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that a launcher started, while entered; otherwise do nothing."""
    if "TORCHELASTIC_RUN_ID" in os.environ and not dist.is_initialized():
        end_with_parent()  # orphans of a killed torchrun would keep its successor out
    if not launched() or int(os.environ["WORLD_SIZE"]) == 1 or world_size() > 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        number, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(backend, store=_fresh_store(), rank=number, world_size=size)
    else:
        dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()


_meetings = itertools.count()
"""Numbers the groups that this process joins."""

_TRY_S = 5
"""Seconds to wait at an address of rank 0 before it is asked for again."""


def _fresh_store() -> TCPStore:
    """Return a store of rank 0 for what the processes tell each other as they join.

    Torchrun's own store outlives a restart (pytorch/pytorch#135712): a process would find the
    addresses of those that were killed, and wait for them. So it only passes on where rank 0 is;
    an address of an earlier rank 0 is refused, and read again.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent = TCPStore(host, port, is_master=False, wait_for_workers=False)
    number = str(next(_meetings))
    key = f"triptych/{number}"
    if int(os.environ["RANK"]) == 0:
        own = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        own.set(key, number)
        agent.set(key, str(own.port))
        return own
    while True:
        found = int(agent.get(key))
        try:
            store = TCPStore(
                host,
                found,
                is_master=False,
                wait_for_workers=False,
                timeout=timedelta(seconds=_TRY_S),
            )
            store.get(key)  # of another group of rank 0 otherwise
        except dist.DistError:
            continue
        store.set_timeout(default_pg_timeout)
        return store


class ProcessDied(TriptychError):  # noqa: N818 - an event, as its message says
    """One of several processes ended without an error: killed, or out of memory."""


def run_processes(function: Callable[..., T], num_processes: int, *arguments: Any) -> T:
    """Call `function(*arguments)` in several new processes of one group, and wait for them.

    They meet through a file, so no port is needed. Signals that ask to stop are forwarded as
    SIGTERM. If one fails, or this process is killed, the others end.

    Args:
        function: A function of a module; what it returns and raises must be picklable.
        num_processes: At least 1; on a machine with GPUs, process i takes GPU i.
        arguments: Picklable.

    Returns:
        What the function returned in the process of rank 0.

    Raises:
        Exception: What the function raised; an error of Triptych before those that it caused.
        ProcessDied: A process died.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="triptych_") as folder:
        meeting = f"file://{Path(folder) / 'meeting'}"
        processes: list[SpawnProcess] = []
        ends: list[Connection] = []
        for number in range(num_processes):
            here, there = context.Pipe(duplex=False)
            process = context.Process(
                target=_run, args=(function, number, num_processes, meeting, there, arguments)
            )
            process.start()
            there.close()
            processes.append(process)
            ends.append(here)
        with forward_signals(processes):
            outcomes = _outcomes(processes, ends)
    failures = [error for ok, error in outcomes if not ok]
    for error in sorted(failures, key=_is_consequence):
        raise error
    result: T = outcomes[0][1]
    return result


def _run(
    function: Callable[..., Any],
    number: int,
    num_processes: int,
    meeting: str,
    end: Connection,
    arguments: tuple[Any, ...],
) -> None:
    """Run the function in one of the processes."""
    end_with_parent()
    os.environ["LOCAL_RANK"] = str(number)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    cuda = torch.cuda.is_available() and torch.cuda.device_count() >= num_processes
    if cuda:
        torch.cuda.set_device(number)
    outcome: tuple[bool, Any]
    try:
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            init_method=meeting,
            rank=number,
            world_size=num_processes,
        )
        outcome = (True, function(*arguments))
    except (Exception, KeyboardInterrupt) as error:
        outcome = (False, error)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()  # its peers learn of a failure by the closed connection
    end.send(outcome)
    end.close()


def _outcomes(processes: list[SpawnProcess], ends: list[Connection]) -> list[tuple[bool, Any]]:
    """Collect (succeeded, result or error) of each process; end the others after a failure."""
    outcomes: dict[int, tuple[bool, Any]] = {}
    ended: set[int] = set()
    while len(outcomes) < len(ends):
        waiting = [end for number, end in enumerate(ends) if number not in outcomes]
        for end in wait(waiting):
            number = ends.index(end)  # type: ignore[arg-type]
            try:
                outcomes[number] = ends[number].recv()
            except EOFError:
                processes[number].join()
                code = processes[number].exitcode
                if number in ended:  # the cause is another process's error
                    outcomes[number] = (False, RuntimeError(f"process {number} was ended here"))
                    continue
                died = f"process {number} died (code {code}): killed, or out of memory"
                resume = "resume a run that has a checkpoint with --resume"
                outcomes[number] = (False, ProcessDied(f"{died}; {resume}"))
            if not outcomes[number][0] and _is_consequence(outcomes[number][1]):
                continue
            if not outcomes[number][0]:
                ended |= _end_soon(processes, number)
    for process in processes:
        process.join()
    return [outcomes[number] for number in range(len(ends))]


def _end_soon(processes: list[SpawnProcess], failed: int) -> set[int]:
    """Give the others a moment to notice the failure, then end them; return whom that hit."""
    ended = set()
    for number, process in enumerate(processes):
        if number != failed:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                ended.add(number)
    return ended


def _is_consequence(error: BaseException) -> bool:
    """Return whether an error may follow from another process's: a closed connection."""
    return not isinstance(error, TriptychError) and isinstance(error, RuntimeError)


@contextmanager
def forward_signals(processes: Sequence[BaseProcess]) -> Iterator[list[int]]:
    """Forward SIGINT, SIGTERM and SIGHUP to other processes, as SIGTERM, instead of ending here.

    Args:
        processes: Those alive when the signal comes receive it; the list may still grow.

    Yields:
        The signals received so far; the list grows.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        let_go_of_closed_terminals()
        for process in processes:
            if process.is_alive():
                process.terminate()

    previous = {n: signal.signal(n, forward) for n in stop_signals()}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
