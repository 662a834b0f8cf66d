"""A switch for comparing layers with themselves: a shortcut gives what the long way gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_taken = True


def are_taken() -> bool:
    """Say whether layers skip padding and choose what to project."""
    return _taken


@contextmanager
def without_shortcuts() -> Iterator[None]:
    """Compute padding like any token and project every memory, as released code does.

    For tests and benchmarks: the switch holds for the whole process.
    """
    global _taken
    before, _taken = _taken, False
    try:
        yield
    finally:
        _taken = before
