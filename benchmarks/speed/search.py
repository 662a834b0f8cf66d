"""Search and indexing, compared with faiss and with a plain loop; prints JSON.

`exact`: a million random unit vectors of width 256, the first 10, batches of 1 and of 64 queries:
our exact search (float16 on disk, mapped) over faiss IndexFlatIP on the same values in float32.
`approximate`: the faiss index that `triptych index --method approximate` builds of a million
vectors in 2,000 clusters: its recall of the exact first 10, and its speed over exact search.
`rerank`: recall at 1 of the demo's model among 500 unseen scenes by `triptych search`, and the time
of a query, with 0, 16, 64 and 256 candidates for ITM.
`index`: images a second of `triptych index` on JPEGs of 640 x 480, over a loop that loads and
embeds one image at a time.

faiss is slower under OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE: unset them.

    python -m benchmarks.speed.search exact
    python -m benchmarks.speed.search rerank --start runs/demo/pretrain/model
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.speed.mplug_timing import ratio_range, speedup, time_in_turn
from triptych.data.manifest import read_records
from triptych.index.approximate import (
    build_approximate,
    import_faiss,
    open_approximate,
    search_approximate,
)
from triptych.index.build import build_index
from triptych.index.exact import search_exact
from triptych.index.search import open_index
from triptych.index.store import Vectors, map_vectors, write_vectors
from triptych.scenes.write import write_scenes
from triptych.serving.engine import load
from triptych.serving.loading import load_model
from triptych.workflows.scene_data import format_source

WIDTH, TOP = 256, 10
CLUSTERS = 2000
CANDIDATES = (0, 16, 64, 256)


def unit_rows(rng: np.random.Generator, number: int, centres: Any = None) -> Vectors:
    """Return random unit vectors, near centres if there are any."""
    rows = rng.standard_normal((number, WIDTH), dtype=np.float32)
    if centres is not None:
        rows = 0.06 * rows + centres[rng.integers(len(centres), size=number)]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float16)


def write_million(path: Path, number: int, clustered: bool) -> list[Vectors]:
    """Write vectors as an index does, and map them."""
    rng = np.random.default_rng(0)
    centres = unit_rows(rng, CLUSTERS).astype(np.float32) if clustered else None
    step = 50_000
    write_vectors(path, WIDTH, (unit_rows(rng, step, centres) for _ in range(number // step)))
    return map_vectors(path, WIDTH)


def exact(options: argparse.Namespace) -> dict[str, Any]:
    """Compare exact search with faiss's."""
    faiss = import_faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        vectors = write_million(Path(folder) / "v.arrow", options.vectors, clustered=False)
        flat = faiss.IndexFlatIP(WIDTH)
        for part in vectors:
            flat.add(np.ascontiguousarray(part, dtype=np.float32))
        for batch in (1, 64):
            queries = unit_rows(np.random.default_rng(1), batch).astype(np.float32)
            asked = torch.from_numpy(queries)
            ours = search_exact(vectors, asked, TOP)[1]
            same = float(np.mean(ours == flat.search(queries, TOP)[1]))
            seconds = time_in_turn(
                {
                    "faiss": lambda q=queries: flat.search(q, TOP),  # type: ignore[misc]
                    "ours": lambda q=asked: search_exact(vectors, q, TOP),  # type: ignore[misc]
                },
                options.rounds,
            )
            found[f"exact_over_faiss_flat_{batch}"] = speedup(seconds, "faiss", "ours")
            found[f"range_{batch}"] = ratio_range(seconds, "faiss", "ours")
            found[f"ms_{batch}"] = round(1000 * statistics.median(seconds["ours"]), 1)
            found[f"same_{batch}"] = round(same, 4)
    found["protocol"] = f"{options.vectors:,} x {WIDTH}, the first {TOP}, {options.rounds} rounds"
    return found


def approximate(options: argparse.Namespace) -> dict[str, Any]:
    """Measure recall and speed of the faiss index."""
    with tempfile.TemporaryDirectory() as folder:
        vectors = write_million(Path(folder) / "v.arrow", options.vectors, clustered=True)
        begun = time.perf_counter()
        method, recall = build_approximate(vectors, Path(folder) / "v.faiss")
        minutes = (time.perf_counter() - begun) / 60
        opened = open_approximate(Path(folder) / "v.faiss")
        query = torch.from_numpy(vectors[0][:1].astype(np.float32))
        seconds = time_in_turn(
            {
                "exact": lambda: search_exact(vectors, query, TOP),
                "approximate": lambda: search_approximate(opened, query, TOP),
            },
            options.rounds,
        )
    return {
        "ann_recall_at_10": round(recall, 4),
        "ann_speedup": speedup(seconds, "exact", "approximate"),
        "range": ratio_range(seconds, "exact", "approximate"),
        "build_minutes": round(minutes, 1),
        "protocol": f"{method}, {options.vectors:,} x {WIDTH} in {CLUSTERS:,} clusters, one query",
    }


def rerank(options: argparse.Namespace) -> dict[str, Any]:
    """Measure recall at 1 and time with each number of candidates."""
    with tempfile.TemporaryDirectory() as folder:
        files = write_scenes(
            Path(folder) / "scenes", 8, num_test=500, formats=("captions",), captions_per_image=1
        )
        source = format_source(files, "captions", "test")
        build_index(load_model(options.start), source, Path(folder) / "index")
        index = open_index(Path(folder) / "index")
        records = [r for r in read_records(source).records if r.image and r.caption]
        rows = {}
        for candidates in CANDIDATES:
            right, took = 0, []
            for record in records[: options.queries]:
                assert record.caption is not None
                begun = time.perf_counter()
                best = index.search(record.caption, top=1, rerank=candidates)[0]
                took.append(time.perf_counter() - begun)
                right += record.caption in best.image.captions
            rows[str(candidates)] = {
                "r1": round(right / len(took), 4),
                "ms": round(1000 * statistics.median(took), 1),
            }
    return {
        "rerank_gain": round(rows["16"]["r1"] - rows["0"]["r1"], 4),
        "by_candidates": rows,
        "protocol": f"{options.queries} captions among 500 unseen scenes; equal captions are right",
    }


def index(options: argparse.Namespace) -> dict[str, Any]:
    """Compare indexing with a plain loop."""
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos" / "all"
        photos.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for number in range(options.images):
            small = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
            small.resize((640, 480), Image.Resampling.BICUBIC).save(photos / f"{number}.jpg")
        paths = sorted(map(str, photos.iterdir()))
        engine = load(options.start)
        from triptych.data.source import DataSourceConfig

        def plain() -> None:
            for path in paths:
                engine.embed_images(path)

        def ours() -> None:
            with tempfile.TemporaryDirectory() as out:
                build_index(
                    load_model(options.start),
                    DataSourceConfig(path=str(photos.parent)),
                    Path(out),
                    num_workers=options.workers,
                )

        seconds = time_in_turn({"plain": plain, "ours": ours}, options.rounds)
    return {
        "index_images_per_s_over_plain": speedup(seconds, "plain", "ours"),
        "range": ratio_range(seconds, "plain", "ours"),
        "images_per_s": round(options.images / statistics.median(seconds["ours"]), 1),
        "protocol": f"{options.images:,} JPEGs of 640 x 480, {options.workers} worker processes",
    }


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "exact": exact,
    "approximate": approximate,
    "rerank": rerank,
    "index": index,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--start", type=Path, default=Path("runs/demo/pretrain/model"))
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    print(json.dumps(PARTS[options.part](options)))


if __name__ == "__main__":
    main()
