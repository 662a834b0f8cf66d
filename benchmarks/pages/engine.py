"""Gather the figures of training on several processes and of large batches.

Writes `benchmarks/results/engine.json`; `gather.py` says how.

    python -m benchmarks.pages.engine
    python -m benchmarks.pages.engine --only contrastive
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.pages.gather import Benchmark, Part, at_least, at_most, build_parser, gather

RECORD_KEYS = (
    "record_bytes",
    "second_start_s",
    "workers_memory",
    "shard_samples_per_s",
    "remote_resume",
)

KILLS = ("-m", "benchmarks.parity.engine_kills", "--only")

ENGINE = Benchmark(
    name="engine",
    prefix="engine_",
    details=("largest_difference", "whole", "tiled", "first_save_blocks_s_ratio", "seconds"),
    parts=(
        Part(
            "contrastive",
            ("-m", "benchmarks.speed.contrastive_memory"),
            ("contrastive_memory",),
        ),
        Part("records", ("-m", "benchmarks.speed.records"), RECORD_KEYS),
        Part("rank_kills", (*KILLS, "kills"), ("rank_kills",)),
        Part("elastic", (*KILLS, "elastic"), ("elastic_wrong_steps", "elastic_loss_gap")),
        Part("save_kills", ("-m", "tests.checkpoint.kill_saves", "20"), ("save_kills",)),
        Part(
            "checkpoints",
            ("-m", "benchmarks.speed.checkpoints"),
            ("step_during_save", "save_blocks_s_ratio"),
        ),
    ),
    bars={
        "rank_kills": at_least("rank_kills", 10),
        "elastic_wrong_steps": at_most("elastic_wrong_steps", 0),
        "elastic_loss_gap": at_most("elastic_loss_gap", 1e-5),
        "save_kills": at_least("save_kills", 20),
        "step_during_save": at_most("step_during_save", 1.2),
        "save_blocks_s_ratio": at_most("save_blocks_s_ratio", 0.2),
        "contrastive_memory": at_most("contrastive_memory", 0.3),
        "record_bytes": at_most("record_bytes", 20),
        "second_start_s": at_most("second_start_s", 5),
        "workers_memory": at_most("workers_memory", 1.2),
        "shard_samples_per_s": at_least("shard_samples_per_s", 1.0),
        "remote_resume": at_most("remote_resume", 0),
    },
)


def main(arguments: Sequence[str] | None = None) -> int:
    return gather(ENGINE, build_parser(ENGINE, __doc__).parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
