"""Gather the figures of training on several processes, of its checkpoints and of large data.

Writes `benchmarks/results/engine.json`; `gather.py` says how.

    python -m benchmarks.pages.engine
    python -m benchmarks.pages.engine --only contrastive
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.pages.gather import Bar, Benchmark, Part, at_least, at_most, build_parser, gather

KILLS = ("-m", "benchmarks.parity.engine_kills", "--only")

ENGINE = Benchmark(
    name="engine",
    title="Several processes, checkpoints and large data",
    what={
        "equality_cells": "ways to share the work that equal one process to 1e-5",
        "equality_total": "ways tried: family, parallelism, ranks, accumulation, recomputation",
        "rank_kills": "runs of 10 under torchrun that end equal after one of two ranks is killed",
        "save_kills": "saves of 20, killed by SIGKILL, that leave a usable checkpoint",
        "elastic_wrong_steps": "steps with wrong samples, 2-1-4-2 ranks in an epoch of a mixture",
        "elastic_loss_gap": "largest difference of its losses from an uninterrupted run",
        "static_memory_ratio_2": "weights, gradients, optimizer, teacher: FSDP on 2 over one",
        "static_memory_ratio_4": "the same, on 4 processes",
        "step_during_save": "step while a checkpoint is written over a quiet one, base size",
        "save_blocks_s_ratio": "seconds for which a save blocks, over format 1, base size",
        "ddp_over_today": "step of mplug_small on 2 ranks, DDP over one plain all-reduce",
        "record_bytes": "private bytes of a record, 14 M records",
        "second_start_s": "seconds to open their index again",
        "workers_memory": "private memory of 4 loader workers over that of one",
        "shard_samples_per_s": "samples per second from tar shards over webdataset, one process",
        "remote_resume": "samples lost over HTTP when 5 % of the requests fail",
        "contrastive_memory": "peak memory of ITC, 1,024 of 32,768 pairs, tiles over matrices",
        "table6_rungs": "rungs of mPLUG's table 6 measured at mplug_small; the file has the table",
    },
    prefix="engine_",
    details=(
        *("largest_difference", "largest_gap", "whole", "tiled"),
        *("static_mib", "ddp_s", "plain_s", "table6"),
        *("first_save_blocks_s_ratio", "gigabytes", "records", "seconds"),
    ),
    parts=(
        Part(
            "equality",
            ("-m", "benchmarks.parity.engine_equality"),
            ("equality_cells", "equality_total"),
        ),
        Part("rank_kills", (*KILLS, "kills"), ("rank_kills",)),
        Part("elastic", (*KILLS, "elastic"), ("elastic_wrong_steps", "elastic_loss_gap")),
        Part("save_kills", ("-m", "tests.checkpoint.kill_saves", "20"), ("save_kills",)),
        Part(
            "memory",
            ("-m", "benchmarks.speed.engine_step", "--only", "memory"),
            ("static_memory_ratio_2", "static_memory_ratio_4"),
        ),
        Part(
            "checkpoints",
            ("-m", "benchmarks.speed.checkpoints"),
            ("step_during_save", "save_blocks_s_ratio"),
        ),
        Part("ddp", ("-m", "benchmarks.speed.engine_step", "--only", "ddp"), ("ddp_over_today",)),
        Part(
            "records",
            ("-m", "benchmarks.speed.records"),
            (
                *("record_bytes", "second_start_s", "workers_memory"),
                *("shard_samples_per_s", "remote_resume"),
            ),
        ),
        Part("contrastive", ("-m", "benchmarks.speed.contrastive_memory"), ("contrastive_memory",)),
        Part(
            "ladder", ("-m", "benchmarks.speed.engine_step", "--only", "ladder"), ("table6_rungs",)
        ),
    ),
    bars={
        "equality_cells": Bar(
            "all", lambda values: bool(values["equality_cells"] == values["equality_total"])
        ),
        "rank_kills": at_least("rank_kills", 10),
        "save_kills": at_least("save_kills", 20),
        "elastic_wrong_steps": at_most("elastic_wrong_steps", 0),
        "elastic_loss_gap": at_most("elastic_loss_gap", 1e-5),
        "static_memory_ratio_2": at_most("static_memory_ratio_2", 0.55),
        "static_memory_ratio_4": at_most("static_memory_ratio_4", 0.30),
        "step_during_save": at_most("step_during_save", 1.2),
        "save_blocks_s_ratio": at_most("save_blocks_s_ratio", 0.2),
        "ddp_over_today": at_most("ddp_over_today", 0.95),
        "record_bytes": at_most("record_bytes", 20),
        "second_start_s": at_most("second_start_s", 5),
        "workers_memory": at_most("workers_memory", 1.2),
        "shard_samples_per_s": at_least("shard_samples_per_s", 1.0),
        "remote_resume": at_most("remote_resume", 0),
        "contrastive_memory": at_most("contrastive_memory", 0.3),
    },
)


def main(arguments: Sequence[str] | None = None) -> int:
    return gather(ENGINE, build_parser(ENGINE, __doc__).parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
