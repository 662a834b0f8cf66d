"""Triptych and what a user would pick instead, doing the same work side by side; prints JSON.

A contest is one piece of work by two sides: of equal sizes, on random weights (nothing is
downloaded), in turn in one process, each round in another order. Where a side can compute in
several precisions, each is timed, and the one with the lowest median counts for it. The figure is
the median over rounds of the ratio of two runs of the same round, the peer's time over ours; its
range is told too. Each peer comes from its package, at the version that is told, and is called as
its documentation says; `called` says how.

`--write` stores the figures in benchmarks/results/peers.json and leaves those of other contests
there as they are.

    python -m benchmarks.peers --list
    python -m benchmarks.peers --only caption_blip_1 --rounds 3 --write
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.pages.gather import RESULTS
from benchmarks.speed.mplug_timing import (
    CLOCKS,
    Seconds,
    build_parser,
    median_ms,
    ratio_range,
    run_facts,
    speedup,
    start,
    time_in_turn,
)
from triptych.core.files import write_json
from triptych.core.machine import current_commit, describe_machine
from triptych.core.processes import keep_freed_memory

STORED = RESULTS / "peers.json"

Ways = dict[str, Callable[[], object]]
"""What a side runs, by precision; by anything else that it may choose."""


@dataclass(frozen=True, slots=True)
class Work:
    """The same work by both sides.

    Attributes:
        ours: Ways to do it.
        peer: Likewise.
        facts: Sizes, and how far the results of both lie apart where they can be compared.
    """

    ours: Ways
    peer: Ways
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Contest:
    """A contest with a peer.

    Attributes:
        key: Its figure.
        package: Of the peer, as installed.
        build: "MODULE:FUNCTION", which makes the `Work`; imported when the contest is run.
        called: How each side is called.
        bar: What the figure should reach; None where it is reported alone.
    """

    key: str
    package: str
    build: str
    called: str
    bar: float | None = None

    def work(self) -> Work:
        """Build both sides."""
        module, name = self.build.split(":")
        made: Work = getattr(importlib.import_module(module), name)()
        return made


BLIP_CAPTIONS = (
    "BlipForConditionalGeneration.generate(pixel_values, num_beams=5, min_new_tokens=20, "
    "max_new_tokens=20); bf16: weights in bf16. Ours: Captioning.search, as Engine.caption does; "
    "bf16: autocast."
)
CONTESTS = {
    **{
        f"caption_blip_{size}": Contest(
            f"caption_over_blip_{size}",
            "transformers",
            f"benchmarks.speed.peers_blip:captions_{size}",
            BLIP_CAPTIONS,
            bar=None if size == 16 else 3.0,
        )
        for size in (1, 8, 16)
    },
    "itm_blip": Contest(
        "itm_over_blip",
        "transformers",
        "benchmarks.speed.peers_blip:matching",
        "BlipForImageTextRetrieval: its vision_model once an image, its text_encoder and itm_head "
        "for 64 texts; bf16: weights in bf16. Ours: match_pairs, as Engine.match does; bf16: "
        "autocast.",
        bar=3.0,
    ),
    "flava_step": Contest(
        "step_over_transformers",
        "transformers",
        "benchmarks.speed.peers_flava:step",
        "FlavaForPreTraining(..., return_loss=True), backward, clipping, fused AdamW; ours: "
        "FLAVAPretraining with the same weights, and the same rest. bf16: autocast on both sides.",
    ),
    "flava_retrieval": Contest(
        "retrieval_over_transformers",
        "transformers",
        "benchmarks.speed.peers_flava:retrieval",
        "FlavaModel.get_image_features and get_text_features of texts padded to 77, as its "
        "processor does, and the products of the first tokens; bf16: weights in bf16. Ours: "
        "encode and embed, as Engine.embed_images and embed_texts do; bf16: autocast.",
    ),
}

DECODING = (
    "Image.open(...).resize((256, 256), BICUBIC), or with draft where it trains; cv2.imdecode and "
    "resize by INTER_AREA, in training with IMREAD_REDUCED_COLOR_8. Ours: decode_image and resize "
    "in evaluation; in training the loader, which also draws a crop."
)
CONTESTS |= {
    name: Contest(f"{name}_over", package, f"benchmarks.speed.peers_data:{name}", DECODING)
    for name, package in (
        ("decode_pillow", "pillow"),
        ("decode_cv2", "opencv-python-headless"),
        ("train_decode_pillow", "pillow"),
        ("train_decode_cv2", "opencv-python-headless"),
    )
}
CONTESTS |= {
    name: Contest(
        f"{name}_over",
        package,
        f"benchmarks.speed.peers_data:{name}",
        "IndexFlatIP.search in float32; usearch's search(..., metric='ip', exact=True) in float16. "
        "Ours: search_exact over float16 on disk, as an index has them.",
    )
    for name, package in (
        ("search_faiss_1", "faiss-cpu"),
        ("search_faiss_64", "faiss-cpu"),
        ("search_usearch_1", "usearch"),
        ("search_usearch_64", "usearch"),
    )
}


def measure(name: str, rounds: int, clock: str) -> dict[str, Any]:
    """Run a contest and return its figure with what a reader must know of it."""
    contest = CONTESTS[name]
    work = contest.work()
    ways = {f"ours {way}": run for way, run in work.ours.items()}
    ways |= {f"peer {way}": run for way, run in work.peer.items()}
    seconds = time_in_turn(ways, rounds, CLOCKS[clock])
    best = {side: _fastest(seconds, side) for side in ("ours", "peer")}
    return {
        contest.key: speedup(seconds, best["peer"], best["ours"]),
        "range": ratio_range(seconds, best["peer"], best["ours"]),
        "best": best,
        "median_ms": median_ms(seconds),
        "bar": contest.bar,
        "peer": f"{contest.package} {version(contest.package)}",
        "called": contest.called,
        **work.facts,
    }


def _fastest(seconds: Seconds, side: str) -> str:
    medians = {n: statistics.median(t) for n, t in seconds.items() if n.startswith(side)}
    return min(medians, key=lambda name: medians[name])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser(__doc__, rounds=3)
    parser.add_argument("--only", nargs="+", choices=CONTESTS, default=list(CONTESTS))
    parser.add_argument("--list", action="store_true", help="name the contests and stop")
    parser.add_argument("--write", action=argparse.BooleanOptionalAction, default=False)
    options = start(parser, arguments)
    if options.list:
        print("\n".join(f"{name}: {contest.key}" for name, contest in CONTESTS.items()))
        return
    keep_freed_memory()
    for name in options.only:
        found = measure(name, options.rounds, options.clock) | run_facts(options)
        found |= {"torch": torch.__version__, "commit": current_commit()}
        print(json.dumps({"contest": name} | found), flush=True)
        if options.write:
            stored = json.loads(STORED.read_text()) if STORED.exists() else {}
            write_json(STORED, stored | {name: found | {"machine": describe_machine()}})


if __name__ == "__main__":
    main()
