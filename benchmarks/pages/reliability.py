"""Gather what hostile files, kills, full disks and changed data leave behind.

Writes `benchmarks/results/reliability.json`; `gather.py` says how.

    python -m benchmarks.pages.reliability
    python -m benchmarks.pages.reliability --only disk_full
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.pages.gather import (
    Benchmark,
    Part,
    at_least,
    at_most,
    build_parser,
    gather,
    read_json_line,
)

FAULTS, FUZZ = ("-m", "tests.faults"), ("-m", "tests.fuzz")
MODELS = tuple(f"runs/demo/{stage}/model" for stage in ("pretrain", "vqa", "grounding"))


def counts(code: int, output: str) -> dict[str, Any]:
    """Return what was counted, also where the code says that a promise was not kept.

    Raises:
        DataError: The program printed no counts.
    """
    return read_json_line(0, output)


RELIABILITY = Benchmark(
    name="reliability",
    title="Hostile files, kills, full disks and changed data",
    what={
        "fuzz_cases": "mutated files of all kinds that were read",
        "fuzz_unclean": "tracebacks, hangs, memory over 2 GB, crashes and code run among them",
        "kills_equal": "runs that ended bitwise equal after kill -9, of 100",
        "disk_full": "full disks with a clear error, no partial files and an equal end, of 30",
        "changed_data": "kinds of changes to the data that resume names, or rightly accepts, of 13",
        "damaged_models": "model folders with flipped bytes that are refused by file, of 200",
        "threads": "wrong results of 10,000 calls from 8 threads",
    },
    prefix="reliability_",
    details=("by_kind", "seconds"),
    parts=(
        Part(
            "fuzz",
            (*FUZZ, "--cases", "10000", "--minutes", "10"),
            ("fuzz_cases", "fuzz_unclean"),
            counts,
        ),
        Part("kills", (*FAULTS, "kills", "--number", "100"), ("kills_equal",), counts),
        Part("disk_full", (*FAULTS, "disk_full", "--number", "30"), ("disk_full",), counts),
        Part("changed_data", (*FAULTS, "changed_data"), ("changed_data",), counts),
        Part("damaged_models", (*FUZZ, "--damaged-models", "200"), ("damaged_models",), counts),
        Part("threads", ("-m", "benchmarks.speed.threads", *MODELS), ("threads",)),
    ),
    bars={
        "fuzz_cases": at_least("fuzz_cases", 10_000),
        "fuzz_unclean": at_most("fuzz_unclean", 0),
        "kills_equal": at_least("kills_equal", 100),
        "disk_full": at_least("disk_full", 30),
        "changed_data": at_least("changed_data", 13),
        "damaged_models": at_least("damaged_models", 200),
        "threads": at_most("threads", 0),
    },
)


def main(arguments: Sequence[str] | None = None) -> int:
    return gather(RELIABILITY, build_parser(RELIABILITY, __doc__).parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
