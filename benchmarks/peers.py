"""Triptych and what a user would pick instead, doing the same work side by side; prints JSON.

A contest is one piece of work by two sides: of equal sizes, on random weights (nothing is
downloaded), in turn in one process, each round in another order. Where a side can compute in
several precisions, each is timed, and the one with the lowest median counts for it. The figure is
the median over rounds of the ratio of two runs of the same round, the peer's time over ours; its
range is told too. `same_way` has this ratio for each way that both sides have, such as a
precision. Each peer comes from its package, at the version that is told, and is called as its
documentation says; `called` says how. Where the figure has a target, `shares` says where our time
goes, and `limit` what the ratio would be if everything but matrix products took no time.

Peers that are not among Triptych's extras are installed into a folder of their own:

    pip install --no-deps --target runs/peers_site -r benchmarks/peers-requirements.txt
    PYTHONPATH=runs/peers_site python -m benchmarks.peers --only itc_step

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

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
        title: The work, in words.
        called: How each side is called.
        bars: What the figure should reach, by way: "best" compares the better way of each side,
            another name the way of that name of both; empty where it is reported alone.
    """

    key: str
    package: str
    build: str
    title: str
    called: str
    bars: Mapping[str, float] = field(default_factory=dict)

    def work(self) -> Work:
        """Build both sides."""
        module, name = self.build.split(":")
        made: Work = getattr(importlib.import_module(module), name)()
        return made


BLIP_CAPTIONS = (
    "BlipForConditionalGeneration.generate(pixel_values, num_beams=5, min_new_tokens=20, "
    "max_new_tokens=20); bf16: weights in bf16. Ours: beam_search on a SlotDecoder, as "
    "Engine.caption does; bf16: autocast."
)
STEP = "backward, clipping, fused AdamW"
CLIP_STEP = (
    f"model(image, text), ClipLoss, as its train_one_epoch does; {STEP}. Ours: ITC alone, without "
    f"queue and momentum teacher, as the trainer steps; {STEP}. bf16: autocast on both sides. "
    "open_clip pads every text to 77 tokens and computes all; ours skips padding."
)
CONTESTS = {
    **{
        f"caption_blip_{size}": Contest(
            f"caption_over_blip_{size}",
            "transformers",
            f"benchmarks.speed.peers_blip:captions_{size}",
            f"captions of {'one image' if size == 1 else f'{size} images'}, 5 beams, 20 tokens, "
            "base size",
            BLIP_CAPTIONS,
            bars={} if size == 16 else {"best": 3.0},
        )
        for size in (1, 8, 16)
    },
    "itm_blip": Contest(
        "itm_over_blip",
        "transformers",
        "benchmarks.speed.peers_blip:matching",
        "matching scores of 64 texts of one image, base size",
        "BlipForImageTextRetrieval: its vision_model once an image, its text_encoder and itm_head "
        "for 64 texts; bf16: weights in bf16. Ours: match_pairs, as Engine.match does; bf16: "
        "autocast.",
        bars={"best": 3.0},
    ),
    **{
        name: Contest(
            f"{name}_over_open_clip",
            "open_clip_torch",
            f"benchmarks.speed.peers_clip:{name}",
            title,
            CLIP_STEP,
            bars={"fp32": 1.0, "bf16": 1.3} if name == "itc_step" else {},
        )
        for name, title in (
            ("itc_step", "a contrastive training step on 8 pairs, ViT-B/16, captions as in CC3M"),
            ("itc_step_full", "the same step on texts of 77 tokens, without padding"),
        )
    },
    "flava_step": Contest(
        "step_over_transformers",
        "transformers",
        "benchmarks.speed.peers_flava:step",
        "FLAVA's training step on 8 pairs, released size",
        f"FlavaForPreTraining(..., return_loss=True), {STEP}; ours: FLAVAPretraining with the "
        "same weights, and the same rest. bf16: autocast on both sides.",
        bars={"bf16": 2.0},
    ),
    "flava_retrieval": Contest(
        "retrieval_over_transformers",
        "transformers",
        "benchmarks.speed.peers_flava:retrieval",
        "zero-shot retrieval by FLAVA: embeddings and cosines of 16 images and 16 texts",
        "FlavaModel.get_image_features and get_text_features of texts padded to 77, as its "
        "processor does, and the products of the first tokens; bf16: weights in bf16. Ours: "
        "encode and embed, as Engine.embed_images and embed_texts do; bf16: autocast.",
    ),
    "embed_files": Contest(
        "embed_files_over_sentence_transformers",
        "sentence-transformers",
        "benchmarks.speed.peers_clip:embed_files",
        "embedding JPEGs of 640 x 480 from files, ViT-B/32",
        "SentenceTransformer(folder).encode(paths, batch_size=64), CLIPModel of transformers in "
        "the folder; bf16: weights in bf16. Ours: build_index, as `triptych index`, of a model "
        "whose image tower has the same weights, batches of 64; bf16: autocast. With 1,000 files "
        "it would take ten minutes, with 200 it takes two.",
    ),
}

DECODING = {
    ("decode", "pillow"): "Image.open(...).resize((256, 256), BICUBIC)",
    ("decode", "cv2"): "cv2.imdecode and resize by INTER_AREA",
    ("train_decode", "pillow"): "Image.open(...), draft and resize of the whole image",
    ("train_decode", "cv2"): "cv2.imdecode with IMREAD_REDUCED_COLOR_8 and resize by INTER_AREA of "
    "the whole image",
}
OURS_DECODING = {
    "decode": "decode_image and resize, as in evaluation, by Pillow's bicubic filter",
    "train_decode": "the loader, which also draws a crop",
}
DECODED = {
    "decode": "JPEGs of 640 x 480, every pixel, to 256 px",
    "train_decode": "JPEGs of 4000 x 3000 at reduced size, to 256 px",
}
CONTESTS |= {
    f"{kind}_{peer}": Contest(
        f"{kind}_{peer}_over",
        package,
        f"benchmarks.speed.peers_data:{kind}_{peer}",
        DECODED[kind],
        f"{DECODING[kind, peer]}. Ours: {OURS_DECODING[kind]}.",
    )
    for kind in DECODED
    for peer, package in (("pillow", "pillow"), ("cv2", "opencv-python-headless"))
}
CONTESTS |= {
    f"search_{peer}_{queries}": Contest(
        f"search_{peer}_{queries}_over",
        package,
        f"benchmarks.speed.peers_data:search_{peer}_{queries}",
        f"exact search, the first 10 of 100,000 vectors of width 256, queries: {queries}",
        f"{called}. Ours: search_exact over float16 on disk, as an index has them.",
    )
    for peer, package, called in (
        ("faiss", "faiss-cpu", "IndexFlatIP.search in float32"),
        ("usearch", "usearch", "search(..., metric='ip', exact=True) in float16"),
    )
    for queries in (1, 64)
}


def measure(name: str, rounds: int, clock: str) -> dict[str, Any]:
    """Run a contest and return its figure with what a reader must know of it."""
    contest = CONTESTS[name]
    peer = f"{contest.package} {installed(contest.package)}"
    work = contest.work()
    ways = {f"ours {way}": run for way, run in work.ours.items()}
    ways |= {f"peer {way}": run for way, run in work.peer.items()}
    seconds = time_in_turn(ways, rounds, CLOCKS[clock])
    best = {side: _fastest(seconds, side) for side in ("ours", "peer")}
    pairs = {way: (f"peer {way}", f"ours {way}") for way in work.ours if way in work.peer}
    medians = median_ms(seconds)
    why = explain({side: ways[name] for side, name in best.items()}) if contest.bars else {}
    if why:
        ratio = medians[best["peer"]] / medians[best["ours"]]
        why["limit"] = round(ratio / why["shares"]["products"], 2)
    return {
        contest.key: speedup(seconds, best["peer"], best["ours"]),
        "range": ratio_range(seconds, best["peer"], best["ours"]),
        "same_way": {
            way: {"ratio": speedup(seconds, *both), "range": ratio_range(seconds, *both)}
            for way, both in pairs.items()
        },
        "best": best,
        "median_ms": medians,
        "peer": peer,
        **work.facts,
        **why,
    }


def explain(best: Mapping[str, Callable[[], object]]) -> dict[str, Any]:
    """Return what bounds the ratio of a contest, from one more run or two of each side's best way.

    Returns:
        `flops` of the products of each side, and `shares` of our time by kind of operation.
    """
    from benchmarks.speed.mplug_profile import UPDATE, seconds_by_kind

    seconds = seconds_by_kind(best["ours"])
    del seconds[UPDATE]  # a contest marks none: its operations are among the others
    shares = {kind: round(taken / sum(seconds.values()), 3) for kind, taken in seconds.items()}
    flops = {side: product_flops(run) for side, run in best.items()}
    return {"flops": flops, "shares": shares}


def product_flops(run: Callable[[], object]) -> int:
    """Return the floating-point operations of all matrix products of a run.

    Products with weights that oneDNN has laid out (`nn/prepacked.py`) are counted too.
    """
    packed = {torch.ops.mkldnn._linear_pointwise: _packed_linear_flops}
    counter = FlopCounterMode(display=False, custom_mapping=packed)
    with sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return int(counter.get_total_flops())


def _packed_linear_flops(
    x_shape: torch.Size, weight_shape: torch.Size, *_: object, **__: object
) -> int:
    return 2 * x_shape.numel() * weight_shape[0]


def installed(package: str) -> str:
    """Return the version of a peer's package.

    Raises:
        SystemExit: It is not installed; the message says how to.
    """
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise SystemExit(
            f"{package} is not installed: pip install triptych[bench,search], or, where that does "
            "not bring it, install benchmarks/peers-requirements.txt as `python -m "
            "benchmarks.peers --help` says"
        ) from error


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
    origin = {"commit": current_commit(), "machine": describe_machine()}  # before results change it
    for name in options.only:
        found = measure(name, options.rounds, options.clock) | run_facts(options)
        print(json.dumps({"contest": name} | found), flush=True)
        if options.write:
            stored = json.loads(STORED.read_text()) if STORED.exists() else {}
            write_json(STORED, stored | {name: found | origin})


if __name__ == "__main__":
    main()
