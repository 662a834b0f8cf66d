"""What holds for a whole process: how it is stopped, ends with its parent, keeps freed memory."""

from __future__ import annotations

import ctypes
import errno
import functools
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import wait


def stop_signals() -> list[int]:
    """Return the signals that ask a program to save and stop.

    SIGHUP, which comes when the terminal or the connection is closed, is none under `nohup`, which
    ignores it, and on Windows.
    """
    found = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        found.append(hangup)
    return [int(number) for number in found]


def let_go_of_closed_terminals() -> None:
    """Send to nowhere what is printed to a terminal that is gone, where it would be an error."""
    for descriptor in (1, 2):
        try:
            os.fstat(descriptor)
            os.ttyname(descriptor)
        except OSError as error:
            if error.errno == errno.EIO:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


_LOOK_S = 0.5
"""Seconds between two looks for a parent that is not `multiprocessing`'s."""


def end_with_parent() -> None:
    """End this process soon after the one that started it is gone, however that ended.

    It returns at once.
    """
    threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_parent(number: int) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
    else:
        while os.getppid() == number:  # an orphan gets another parent
            time.sleep(_LOOK_S)
    os._exit(1)


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_KEEP, _AHEAD = 2**31 - 1, 64 * 2**20


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for the next step instead of giving it back to the system.

    A training step on a CPU, or a batch of a job, allocates and frees the same gigabytes again and
    again. By default each large tensor is a mapping of its own, whose pages the system clears
    again: a tenth of the time of a step. The setting holds for the whole process, which from then
    on holds the most that it ever needed; a server does not want that.

    Returns:
        Whether it was done; other C libraries have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEEP), (_M_TOP_PAD, _AHEAD))
    return all(int(mallopt(name, value)) == 1 for name, value in settings)
