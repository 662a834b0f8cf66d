"""Try what is promised of killed runs, full disks, signals, clocks and changed data; print JSON.

    python -m tests.faults                                  # everything
    python -m tests.faults kills --number 100 --seed 3
    python -m tests.faults disk_full
    python -m tests.faults interruptions
    python -m tests.faults changed_data

The exit code is 1 where a promise was not kept. docs/reliability.md lists the promises.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.faults import changed_data, disk, interruptions, kills
from triptych.core.machine import current_commit, describe_machine

PARTS: dict[str, tuple[Callable[[Path, int, int], dict[str, Any]], int]] = {
    "kills": (kills.measure, 100),
    "disk_full": (disk.measure, 30),
    "interruptions": (interruptions.measure, 10),
    "changed_data": (changed_data.measure, len(changed_data.CHANGES)),
}
"""What measures each part, and how often by default."""

TROUBLE = ("unequal", "problems", "unnamed", "accepted_but_stopped", "same_data_refused")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the parts that are asked for, and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("part", nargs="?", choices=PARTS, help="leave out the others")
    parser.add_argument("--number", type=int, help="faults of each part")
    parser.add_argument("--seed", type=int, help="of moments and limits; drawn if absent")
    options = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    found: dict[str, Any] = {"seed": seed}
    for name in [options.part] if options.part else PARTS:
        measure, number = PARTS[name]
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="faults_") as folder:
            Path(folder).chmod(0o755)  # one part is done by a user without rights
            found |= measure(Path(folder), options.number or number, seed)
        found[f"{name}_seconds"] = round(time.perf_counter() - started, 1)
    found |= {"commit": current_commit(), "machine": describe_machine()}
    print(json.dumps(found))
    return int(any(found.get(key) for key in found if key.endswith(TROUBLE)))


if __name__ == "__main__":
    sys.exit(main())
