"""Contests with FLAVA of transformers, on the same weights: a step on pairs, and retrieval."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers import Work
from benchmarks.speed.flava_batch import make_batch
from benchmarks.speed.flava_step import (
    BATCH_SIZE,
    SIDES,
    build_sides,
    check_same,
    released,
    same_weights,
)
from benchmarks.speed.peers_blip import in_precisions
from triptych.core.machine import cpu_has_bf16
from triptych.train.precision import autocast

CPU = torch.device("cpu")
NUM_IMAGES = 16
LARGEST_GAP = 1e-3
"""Of the cosines in fp32; the rest is rounding."""


def step() -> Work:
    """Return an optimizer step on eight pairs; see flava_step.py."""
    sides = build_sides(SIDES, make_batch(BATCH_SIZE))
    check_same(sides, "fp32")
    names = ("fp32", "bf16") if cpu_has_bf16() else ("fp32",)
    ours, peer = (
        {name: (lambda side=side, name=name: sides[side].step(name)) for name in names}
        for side in SIDES
    )
    return Work(ours, peer, {"pairs": BATCH_SIZE})


def retrieval() -> Work:
    """Return the cosines of images and as many texts, from pixels and token ids."""
    theirs = released().eval()
    ours = same_weights(theirs).eval().requires_grad_(False)
    models: dict[str, Any] = {"fp32": theirs.flava}
    if cpu_has_bf16():
        models["bf16"] = copy.deepcopy(theirs.flava).to(torch.bfloat16)
    batch = make_batch(NUM_IMAGES)

    def embed(precision: str) -> Tensor:
        with autocast(CPU, precision):
            image = ours.embed_image(ours.encode_image(batch.ours["image"]))
            text = ours.encode_text(batch.ours["token_ids"], batch.ours["text_mask"])
            return (image @ ours.embed_text(text).T).float()

    def features(precision: str) -> Tensor:
        model = models[precision]
        pixels = batch.theirs["pixel_values"].to(next(model.parameters()).dtype)
        image = model.get_image_features(pixel_values=pixels)
        text = model.get_text_features(
            input_ids=batch.theirs["input_ids"], attention_mask=batch.theirs["attention_mask"]
        )
        first = [F.normalize(_projected(found)[:, 0].float(), dim=-1) for found in (image, text)]
        return first[0] @ first[1].T

    with torch.inference_mode():
        gap = float((embed("fp32") - features("fp32")).abs().max())
    assert gap < LARGEST_GAP, gap
    facts = {"images": NUM_IMAGES, "texts": NUM_IMAGES, "largest_gap": float(f"{gap:.1g}")}
    return Work(in_precisions(embed), in_precisions(features), facts)


def _projected(found: Any) -> Tensor:
    """Return projected states (B, S, E) of what newer and older versions return."""
    projected: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return projected
