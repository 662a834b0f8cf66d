"""What tests ask of other processes, on Linux, and how they start them fast."""

import multiprocessing
import os
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest

IMPORTED = ["pytest", "triptych.workflows.run"]
"""What a process of several imports in any case; it takes over 3 seconds."""


class _Process(ForkServerProcess):
    """Has the environment of the process that starts it, as a spawned one does."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._environment = dict(os.environ)

    def run(self):
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()


class ForkedContext(ForkServerContext):
    """Forks processes from one that has imported the library, instead of spawning them.

    They begin as clean as spawned ones, since nothing of the process that asks is in them; only
    their hash seed is one and the same.
    """

    Process = _Process

    def __init__(self):
        super().__init__()
        self.set_forkserver_preload(IMPORTED)


@contextmanager
def in_place_of_spawn(context):
    """Give another context to all that ask `multiprocessing` for `spawn`."""
    get_context = multiprocessing.get_context

    def replaced(method=None):
        return context if method == "spawn" else get_context(method)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", replaced)
        yield


def runs(pid: int) -> bool:
    """Return whether a process is there and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        return stat.rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started and that are still there."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
