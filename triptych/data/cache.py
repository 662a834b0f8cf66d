"""The folder where things that can be made again are kept between runs, and what is said of it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: two processes may make the same thing, and the last one's stays
    fcntl = None  # type: ignore[assignment]

CACHE_VARIABLE = "TRIPTYCH_CACHE"
log = logging.getLogger("triptych.data")


def cache_folder() -> Path:
    """Return `$TRIPTYCH_CACHE`, or `~/.cache/triptych`."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "triptych"


def cache_key(settings: Any) -> str:
    """Return 32 hexadecimal digits that stand for JSON-able settings."""
    plain = json.dumps(settings, sort_keys=True)
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@contextmanager
def one_at_a_time(path: Path, what: str | None) -> Iterator[None]:
    """Let one process after the other into the block; the system frees the lock of a dead one.

    Args:
        path: The lock file; it stays.
        what: What the others are told that they wait for, such as `index of data.jsonl`; None
            for what nobody waits for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if what is not None:
                    log.warning("another process makes the %s: waiting for it", what)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # no locks on this file system
                pass
        yield
