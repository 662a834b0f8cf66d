"""Gather the figures of training on several processes and of large batches.

Writes `benchmarks/results/engine.json`; `gather.py` says how.

    python -m benchmarks.pages.engine
    python -m benchmarks.pages.engine --only contrastive
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.pages.gather import Benchmark, Part, at_most, build_parser, gather

ENGINE = Benchmark(
    name="engine",
    prefix="engine_",
    details=("largest_difference", "whole", "tiled"),
    parts=(
        Part(
            "contrastive",
            ("-m", "benchmarks.speed.contrastive_memory"),
            ("contrastive_memory",),
        ),
    ),
    bars={"contrastive_memory": at_most("contrastive_memory", 0.3)},
)


def main(arguments: Sequence[str] | None = None) -> int:
    return gather(ENGINE, build_parser(ENGINE, __doc__).parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
