"""Gather what search, the server, batch jobs, exported models and the demo's time show.

Writes `benchmarks/results/serving.json`; `gather.py` says how. The parts start from the model of
`triptych demo --scale tiny --out runs/demo`.

    python -m benchmarks.pages.serving
    python -m benchmarks.pages.serving --only exact
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.pages.gather import (
    Bar,
    Benchmark,
    Part,
    at_least,
    at_most,
    build_parser,
    gather,
    load_json,
)
from benchmarks.pages.markdown import fill_blocks, make_table

SEARCH = ("-m", "benchmarks.speed.search")
SERVE = ("-m", "benchmarks.speed.serving")
BATCH = ("-m", "benchmarks.speed.batch")
MODEL = "runs/demo/pretrain/model"

SERVING = Benchmark(
    name="serving",
    title="Search, the server, batch jobs and exported models",
    what={
        "exact_over_faiss_flat_1": "speed-up of exact search over faiss Flat, one query",
        "exact_over_faiss_flat_64": "the same, 64 queries at once",
        "ann_recall_at_10": "share of the exact first 10 that the faiss index finds",
        "ann_speedup": "speed-up of the faiss index over exact search, one query",
        "rerank_gain": "gain of recall at 1 from ITM on the first 16, 500 unseen scenes",
        "index_images_per_s_over_plain": "speed-up of `triptych index` over a plain loop",
        "served_throughput_ratio": "captions over HTTP, 16 clients, over one call of the model",
        "served_p99_over_p50": "latency of embeddings, 4 clients, 99th percentile over median",
        "overload_unaccounted": "requests of 200 clients neither answered nor refused",
        "overload_memory_mib": "growth of the server's memory meanwhile, MiB",
        "overload_wrong": "wrong answers meanwhile",
        "hostile_requests": "crashes, hangs and 500s from 1,000 mutated requests and images",
        "batch_kill": "rows lost, doubled or different in batch jobs that are killed 10 times",
        "ray_over_plain": "time of the job on Ray, two workers, over that of the plain job",
        "demo_minutes_bf16": "`make demo` on two cores, without installation, in bf16, minutes",
        "demo_minutes_fp32": "the same where the processor has no bf16",
        "onnx_max_error": "largest difference of embeddings in onnxruntime, three families",
    },
    prefix="serving_",
    details=(
        "range",
        "by_candidates",
        "by_family",
        "build_minutes",
        "seconds",
        "same_64",
        "plain",
        "ray",
        "found",
        "statuses",
        "scores",
    ),
    parts=(
        Part("exact", (*SEARCH, "exact"), ("exact_over_faiss_flat_1", "exact_over_faiss_flat_64")),
        Part("approximate", (*SEARCH, "approximate"), ("ann_recall_at_10", "ann_speedup")),
        Part("rerank", (*SEARCH, "rerank"), ("rerank_gain",)),
        Part("index", (*SEARCH, "index"), ("index_images_per_s_over_plain",)),
        Part("throughput", (*SERVE, "throughput"), ("served_throughput_ratio",)),
        Part("latency", (*SERVE, "latency"), ("served_p99_over_p50",)),
        Part(
            "overload",
            (*SERVE, "overload"),
            ("overload_unaccounted", "overload_memory_mib", "overload_wrong"),
        ),
        Part("hostile", (*SERVE, "hostile"), ("hostile_requests",)),
        Part("batch_kill", (*BATCH, "kill", MODEL), ("batch_kill",)),
        Part("ray", (*BATCH, "ray", MODEL), ("ray_over_plain",)),
        *(
            Part(f"demo_{p}", ("-m", "benchmarks.speed.demo_minutes", p), (f"demo_minutes_{p}",))
            for p in ("bf16", "fp32")
        ),
        Part("onnx", ("-m", "benchmarks.speed.onnx"), ("onnx_max_error",)),
    ),
    bars={
        "exact_over_faiss_flat_1": at_least("exact_over_faiss_flat_1", 1.5),
        "exact_over_faiss_flat_64": at_least("exact_over_faiss_flat_64", 5),
        "ann_recall_at_10": at_least("ann_recall_at_10", 0.95),
        "ann_speedup": at_least("ann_speedup", 20),
        "rerank_gain": Bar("> 0", lambda values: bool(values["rerank_gain"] > 0)),
        "index_images_per_s_over_plain": at_least("index_images_per_s_over_plain", 1.8),
        "served_throughput_ratio": at_least("served_throughput_ratio", 0.8),
        "served_p99_over_p50": at_most("served_p99_over_p50", 4),
        "overload_unaccounted": at_most("overload_unaccounted", 0),
        "overload_memory_mib": at_most("overload_memory_mib", 50),
        "overload_wrong": at_most("overload_wrong", 0),
        "hostile_requests": at_most("hostile_requests", 0),
        "batch_kill": at_most("batch_kill", 0),
        "demo_minutes_bf16": at_most("demo_minutes_bf16", 8),
        "demo_minutes_fp32": at_most("demo_minutes_fp32", 10),
        "onnx_max_error": at_most("onnx_max_error", 1e-4),
    },
)


def search_page(folder: Path, old: str) -> str:
    """Return the page on search with recall and time by the number of re-ranked images.

    Raises:
        DataError: They were not measured, or the page has no block for them.
    """
    stored = load_json(SERVING.stored_path(folder, part_named("rerank")))
    found = stored["output"]
    rows = [
        [candidates, f"{row['r1']:.3f}", f"{row['ms']:g}"]
        for candidates, row in found["by_candidates"].items()
    ]
    machine = stored["machine"]
    below = (
        f"{found['protocol']}. The model of `triptych demo --scale tiny`;\n"
        f"{machine['cores']} cores of {machine['CPU']} ({machine['bf16']}), commit "
        f"`{stored['commit'][:12]}`, "
        f"`{stored['command']}`."
    )
    table = make_table(["`--rerank`", "recall at 1", "ms a query, median"], rows)
    return fill_blocks(old, {"rerank": f"{table}\n\n{below}"})


def part_named(name: str) -> Part:
    """Return a part of the benchmark."""
    return next(part for part in SERVING.parts if part.name == name)


def main(arguments: Sequence[str] | None = None) -> int:
    return gather(SERVING, build_parser(SERVING, __doc__).parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
