"""Gather mPLUG's figures: fusion networks, training step, generation, re-ranking, SCST.

Writes `benchmarks/results/mplug.json`; `gather.py` says how. Every ratio is the median
over paired runs in one process, with the same precision on both sides unless its name says
otherwise. SCST starts from the model of the demo and takes about ten minutes, the rest about
fifteen on two idle cores.

    triptych demo --scale tiny --out runs/demo
    python -m benchmarks.pages.mplug
    python -m benchmarks.pages.mplug --only fusion step
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.pages.gather import (
    Bar,
    Benchmark,
    Part,
    at_least,
    build_parser,
    gather,
    read_json_line,
)

MODEL = "runs/demo/pretrain/model"


def read_beam(code: int, output: str) -> dict[str, Any]:
    """Return what beam.py prints, with the figure under the name it has for ten beams."""
    found = read_json_line(code, output)
    return {"beam10_over_uncached": found.pop("beam_cache_speedup"), **found}


MPLUG = Benchmark(
    name="mplug",
    title="mPLUG",
    what={
        "fusion_s3_over_coattention": "speed-up of skip-connected fusion, S = 3, over co-attention",
        "fusion_s3_over_connected": "the same over connected-attention",
        "step_fast_over_plain": "speed-up of a base pre-training step, one pass over several",
        "step_default_over_plain_fp32": "the same in the default precision over plain fp32",
        "step_outside_products": "share of that step, fast path, outside matrix products",
        "beam10_over_uncached": "speed-up of base captioning by caches, 10 beams, 20 tokens",
        "rerank_over_plain": "speed-up of ITM on 64 texts per image, S = 6",
        "checkpointing_memory_ratio": "peak memory with activation checkpointing over without",
        "scst_cider_before": "CIDEr of captions before SCST",
        "scst_cider_after": "CIDEr after SCST",
    },
    prefix="mplug_",
    details=(
        *("range", "ranges", "range_fp32", "intervals", "time_ratio", "precision"),
        *("limit_over_plain", "seconds", "distill"),
    ),
    parts=(
        Part(
            "fusion",
            ("-m", "benchmarks.speed.mplug_fusion"),
            ("fusion_s3_over_coattention", "fusion_s3_over_connected"),
        ),
        Part(
            "step",
            ("-m", "benchmarks.speed.mplug_step", "--precision", "fp32"),
            ("step_fast_over_plain",),
        ),
        Part(
            "step_default",
            ("-m", "benchmarks.speed.mplug_step"),
            ("step_default_over_plain_fp32",),
        ),
        Part("profile", ("-m", "benchmarks.speed.mplug_profile"), ("step_outside_products",)),
        Part(
            "beam",
            ("-m", "benchmarks.speed.beam", "--beams", "10"),
            ("beam10_over_uncached",),
            read_beam,
        ),
        Part("rerank", ("-m", "benchmarks.speed.mplug_rerank"), ("rerank_over_plain",)),
        Part(
            "checkpointing",
            ("-m", "benchmarks.speed.mplug_checkpointing"),
            ("checkpointing_memory_ratio",),
        ),
        Part(
            "scst",
            ("-m", "benchmarks.scenes.scst", "--model", MODEL),
            ("scst_cider_before", "scst_cider_after"),
        ),
    ),
    bars={
        "fusion_s3_over_coattention": at_least("fusion_s3_over_coattention", 3.4),
        "fusion_s3_over_connected": at_least("fusion_s3_over_connected", 2.3),
        "step_fast_over_plain": at_least("step_fast_over_plain", 1.3),
        "step_default_over_plain_fp32": at_least("step_default_over_plain_fp32", 3.5),
        "beam10_over_uncached": at_least("beam10_over_uncached", 10),
        "rerank_over_plain": at_least("rerank_over_plain", 3.8),
        "scst_cider_after": Bar(
            "> scst_cider_before",
            lambda values: bool(values["scst_cider_after"] > values["scst_cider_before"]),
        ),
    },
)


def main(arguments: Sequence[str] | None = None) -> int:
    return gather(MPLUG, build_parser(MPLUG, __doc__).parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
