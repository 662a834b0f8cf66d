r"""Retrieval of 5,000 images and 25,000 texts by VLMo's two encoders; prints one line of JSON.

By the dual encoder, every image and every text is encoded once and ranked by dot product. By the
fusion encoder, ITM scores every pair: 125 million passes, of which a sample is timed and the rest
extrapolated: a batch of `--batch` images, texts or pairs is passed once without a clock and
`--rounds` times with one, of which the fastest counts; the search has one such round.
`dual_over_fusion_speed` is the ratio of both times. With `--model`, both rank the same unseen
scenes too, `--recall-scenes` of them: these are the queries, and the candidates as well, so that
fewer scenes are an easier search. ITM scores all their pairs, 250,000 for 500 scenes.

    python -m benchmarks.speed.vlmo_dual --variant vlmo_base_patch16
    python -m benchmarks.speed.vlmo_dual --model runs/vlmo_bench/stagewise/pretrain/model \
        --scenes runs/vlmo_bench/data
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.mplug_batch import VOCAB_SIZE, make_batch
from triptych.models.families import create_model
from triptych.models.vlmo.model import VLMo
from triptych.models.vlmo.trunk import TokenSequence
from triptych.scenes.layout import SceneFiles
from triptych.train.precision import autocast, resolve_precision
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.scene_data import scene_source

NUM_IMAGES, NUM_TEXTS = 5_000, 25_000
CPU = torch.device("cpu")


def seconds_each(work: Callable[[], object], items: int, rounds: int) -> float:
    """Return the least time of one item over rounds, after one that is not timed."""
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times) / items


@torch.inference_mode()
def measure(model: VLMo, batch_size: int, rounds: int, precision: str) -> dict[str, Any]:
    """Time encoding, searching and fusing."""
    batch = make_batch(batch_size, model.image_size, torch.Generator().manual_seed(0))
    pixels, ids, mask = batch["image"], batch["token_ids"], batch["text_mask"]

    def embed_images() -> object:
        return model.embed_both_ways(TokenSequence(model.image_inputs(pixels)), fused=False)

    def embed_texts() -> object:
        sequence = TokenSequence(text=model.text_inputs(ids), text_mask=mask)
        return model.embed_both_ways(sequence, fused=False)

    def match() -> object:
        return model.itm_head(model.pair_state(pixels, ids, mask))

    images = torch.randn(NUM_IMAGES, model.config.proj_dim)
    texts = torch.randn(NUM_TEXTS, model.config.proj_dim)

    def search() -> object:
        scores = images @ texts.T
        return scores.topk(10, dim=1), scores.topk(10, dim=0)

    with autocast(CPU, precision):
        each = {
            "image_s": seconds_each(embed_images, batch_size, rounds),
            "text_s": seconds_each(embed_texts, batch_size, rounds),
            "pair_s": seconds_each(match, batch_size, rounds),
        }
    search_s = seconds_each(search, 1, 1)
    dual = NUM_IMAGES * each["image_s"] + NUM_TEXTS * each["text_s"] + search_s
    fusion = NUM_IMAGES * NUM_TEXTS * each["pair_s"]
    return each | {
        "search_s": search_s,
        "dual_minutes": round(dual / 60, 2),
        "fusion_days": round(fusion / 86_400, 2),
        "dual_over_fusion_speed": round(fusion / dual),
    }


def recalls(model: Path, scenes: Path, limit: int) -> dict[str, float]:
    """Return recall at 1 of both encoders on unseen scenes; ITM ranks all of them."""
    source = scene_source(SceneFiles(scenes), "caption", "test")
    found = evaluate_model(model, "retrieval", source, limit=limit, rerank_top_k=limit)
    names = {"i2t_r1": "i2t_r1_dual", "t2i_r1": "t2i_r1_dual"}
    names |= {name: name for name in ("i2t_r1_itm", "t2i_r1_itm")}
    scores = {names[m.name]: m.value for m in found if m.name in names}
    return scores | {"recall_scenes": limit}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", default="vlmo_base_patch16", help="registered size")
    parser.add_argument("--batch", type=int, default=16, help="images, texts or pairs at a time")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--num-threads", type=int, default=None)
    parser.add_argument("--model", type=Path, default=None, help="a trained folder, for recall")
    parser.add_argument("--scenes", type=Path, default=Path("runs/vlmo_bench/data"))
    parser.add_argument("--recall-scenes", type=int, default=500)
    options = parser.parse_args(arguments)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    torch.manual_seed(0)
    model = create_model(options.variant, vocab_size=VOCAB_SIZE).eval()
    precision = options.precision
    if precision == "auto":
        precision = resolve_precision("auto", CPU)
    result = measure(model, options.batch, options.rounds, precision)
    result["protocol"] = (
        f"{options.variant}, {precision}, {NUM_IMAGES:,} images and {NUM_TEXTS:,} texts; times "
        f"of batches of {options.batch}, the fastest of {options.rounds} after one that is not "
        "timed, extrapolated; ITM on all pairs"
    )
    if options.model is not None:
        scenes = f"{options.recall_scenes:,}"
        result["protocol"] += (
            f"; recall of the tiny model among {scenes} scenes, each a query and a candidate"
        )
        result |= recalls(options.model, options.scenes, options.recall_scenes)
    print(json.dumps(result | {"precision": precision, "num_threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
