"""FLAVA against transformers' FlavaForPreTraining with the same random weights; prints JSON.

`parity_max_error` is the largest of: absolute differences of all states of the three encoders and
of all losses, and relative differences of the gradient's norm; at three sizes, with ragged texts,
for pairs, images alone and texts alone (`pip install triptych[bench]`).

    python -m benchmarks.parity.flava_parity
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import Tensor, nn

from tests.parity import flava_oracle as oracle
from triptych.models.flava.model import FLAVA
from triptych.tasks.pretraining.flava import FLAVAPretraining, FLAVAPretrainingConfig

KINDS = ("pair", "image", "text")


def norm(model: nn.Module) -> float:
    """Return the global norm of the gradients."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(grads))


def gap(found: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference."""
    return float((found.detach() - expected.detach()).abs().max())


@torch.no_grad()
def state_gaps(ours: FLAVA, theirs: nn.Module, batch: dict[str, Tensor]) -> dict[str, float]:
    """Compare the states of whole and masked inputs; padding is excluded."""
    matched = batch | {"itm_labels": torch.ones_like(batch["itm_labels"])}
    expected = oracle.released_output(theirs, matched, "pair")
    mask = batch["text_mask"]
    image = ours.encode_image(batch["image"])
    masked = ours.encode_image(batch["image"], hidden_patches=batch["hidden_patches"])
    text = ours.encode_text(batch["token_ids"], mask)
    masked_text = ours.encode_text(batch["mlm_token_ids"], mask)
    fused = ours.fuse(masked, masked_text)
    joint = expected.multimodal_masked_embeddings
    num_image = 1 + image.tokens.shape[1]
    seen, read = ours.visual_encoder.final_norm, ours.text_encoder.final_norm
    return {
        "image": gap(seen(image.tokens), expected.image_embeddings),
        "masked_image": gap(seen(masked.tokens), expected.image_masked_embeddings),
        "text": gap(read(text.tokens)[mask], expected.text_embeddings[mask]),
        "masked_text": gap(read(masked_text.tokens)[mask], expected.text_masked_embeddings[mask]),
        "fused_class": gap(fused.pooled, joint[:, 0]),
        "fused_image": gap(fused.image_tokens, joint[:, 1:num_image]),
        "fused_text": gap(fused.text_tokens[mask], joint[:, num_image:][mask]),
        "itm_logits": gap(ours.match_logits(fused), expected.itm_logits),
    }


def size_gaps(size: str) -> dict[str, float]:
    """Return every difference at one size."""
    config = oracle.released_config(**oracle.SIZES[size])
    theirs = oracle.released_model(config)
    ours = oracle.our_model(theirs)
    batch = oracle.make_batch(config)
    found = state_gaps(ours, theirs, batch)
    task = FLAVAPretraining(ours, FLAVAPretrainingConfig())
    for kind in KINDS:
        expected = oracle.released_output(theirs, batch, kind)
        losses = task.losses(oracle.of_kind(batch, kind))
        for name, loss in losses.items():
            released = getattr(expected.loss_info, oracle.THEIR_LOSSES[name])
            found[f"{kind}_{name}"] = gap(loss, released)
        theirs.zero_grad()
        ours.zero_grad()
        expected.loss.backward()
        torch.stack(list(losses.values())).sum().backward()
        found[f"{kind}_gradient_norm"] = abs(norm(ours) / norm(theirs) - 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    torch.set_num_threads(1)
    sizes = {size: size_gaps(size) for size in oracle.SIZES}
    worst = max(max(gaps.values()) for gaps in sizes.values())
    rows = {size: {name: float(f"{v:.2g}") for name, v in g.items()} for size, g in sizes.items()}
    print(json.dumps({"parity_max_error": float(f"{worst:.3g}"), "sizes": rows}))


if __name__ == "__main__":
    main()
