"""What holds for a whole process: it ends with its parent, and keeps freed memory."""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, however that ended.

    Called in a process that `multiprocessing` started; it returns at once.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_KEEP, _AHEAD = 2**31 - 1, 64 * 2**20


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for the next step instead of giving it back to the system.

    A training step on a CPU allocates and frees the same gigabytes again and again. By default
    each large tensor is a mapping of its own, whose pages the system clears again: a tenth of the
    time of a step. The setting holds for the whole process.

    Returns:
        Whether it was done; other C libraries have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEEP), (_M_TOP_PAD, _AHEAD))
    return all(int(mallopt(name, value)) == 1 for name, value in settings)
