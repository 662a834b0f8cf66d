"""ITM re-ranking of 64 texts an image, base width and S = 6, over the released way; prints JSON.

The fast side is `score_pairs`, what `triptych eval` calls: the keys and values of an image are
projected once for all its texts, and no padding is computed. The plain side does what the released
code does: it copies the image for each text, projects it for each, and computes texts padded to 30
tokens. Both score the same random states, and the scores are compared first. Captions are as long
as Conceptual Captions' are. Same precision on both sides: what `auto` chooses on this machine.

    python -m benchmarks.speed.mplug_rerank --rounds 5
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.speed.mplug_batch import MAX_TOKENS, caption_lengths
from benchmarks.speed.mplug_timing import (
    CLOCKS,
    build_parser,
    median_ms,
    ratio_range,
    run_facts,
    speedup,
    start,
    time_in_turn,
)
from benchmarks.speed.plain import without_shortcuts
from triptych.core.outputs import ImageFeatures, TextFeatures
from triptych.core.processes import keep_freed_memory
from triptych.models.mplug.config import strided_layers
from triptych.models.mplug.family import mplug_base_patch16_256
from triptych.models.mplug.model import MPLUG
from triptych.tasks.finetuning.retrieval import EncodedSet, score_pairs
from triptych.train.precision import autocast, resolve_precision

TEXTS_PER_IMAGE = 64
CPU = torch.device("cpu")
LARGEST_GAP = {"fp32": 1e-4, "bf16": 0.05}


def build_model() -> MPLUG:
    """Return a model with the fusion network of base and S = 6, and little else."""
    config = mplug_base_patch16_256()
    layers = strided_layers(config.fusion_depth, 6)
    config = replace(config, connected_layers=layers, text_depth=1, decoder_depth=1)
    return MPLUG(replace(config, vision=replace(config.vision, depth=1))).eval()


def encoded_set(model: MPLUG, num_images: int) -> EncodedSet:
    """Return random states; every text has a length of its own."""
    generator = torch.Generator().manual_seed(0)
    num_texts, width = num_images * TEXTS_PER_IMAGE, model.config.text.embed_dim
    lengths = torch.tensor(caption_lengths(num_texts, generator))
    image = torch.randn(num_images, 1 + model.config.vision.num_patches, width, generator=generator)
    text = torch.randn(num_texts, MAX_TOKENS, width, generator=generator)
    mask = torch.arange(MAX_TOKENS) < lengths[:, None]
    embedding = torch.zeros(1, 1)
    return EncodedSet(ImageFeatures(image), TextFeatures(text, mask), embedding, embedding)


@torch.no_grad()
def plain_scores(model: MPLUG, encoded: EncodedSet, pairs: Tensor) -> Tensor:
    """Score pairs as the released code does: image by image, everything a pair."""
    scores = []
    with without_shortcuts():
        for rows in pairs.split(TEXTS_PER_IMAGE):  # type: ignore[no-untyped-call]
            fused = model.fuse(encoded.image.select(rows[:, 0]), encoded.text.select(rows[:, 1]))
            logits = model.match_logits(fused).float()
            scores.append(logits[:, 1] - logits[:, 0])
    return torch.cat(scores)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser(__doc__, rounds=5)
    parser.add_argument("--images", type=int, default=2, help="images of a run, 64 texts each")
    options = start(parser, arguments)
    keep_freed_memory()
    model = build_model()
    precision = resolve_precision("auto", CPU)
    encoded = encoded_set(model, options.images)
    texts = torch.arange(options.images * TEXTS_PER_IMAGE)
    pairs = torch.stack([texts // TEXTS_PER_IMAGE, texts], dim=1)

    def fast() -> Tensor:
        with autocast(CPU, precision):
            return score_pairs(model, encoded, pairs)

    def plain() -> Tensor:
        with autocast(CPU, precision):
            return plain_scores(model, encoded, pairs)

    found, expected = fast(), plain()
    gap = float((found - expected).abs().max() / expected.std())
    assert gap < LARGEST_GAP[precision], gap
    seconds = time_in_turn({"plain": plain, "fast": fast}, options.rounds, CLOCKS[options.clock])
    print(
        json.dumps(
            {
                "rerank_over_plain": speedup(seconds, "plain", "fast"),
                "range": ratio_range(seconds, "plain", "fast"),
                "median_ms": median_ms(seconds),
                "largest_gap": float(f"{gap:.1g}"),
                "precision": precision,
                "images": options.images,
                "texts_per_image": TEXTS_PER_IMAGE,
                "mean_tokens": round(float(encoded.text.mask.sum(1).float().mean()), 1),
            }
            | run_facts(options)
        )
    )


if __name__ == "__main__":
    main()
