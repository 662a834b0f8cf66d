"""How far our outputs are from the released code's, on the same small weights; prints JSON.

`golden_max_error` is the largest absolute difference over the eleven outputs and the MLM and ITC
losses of both golden files, relative and absolute positions; states at padding are not compared.

    python -m benchmarks.parity.vlmo_golden
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from triptych.models.vlmo.config import VLMoConfig
from triptych.models.vlmo.convert import config_for, import_state_dict
from triptych.models.vlmo.model import VLMo
from triptych.models.vlmo.trunk import TokenSequence
from triptych.objectives.global_contrastive import global_contrastive_loss
from triptych.objectives.mlm import token_loss

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "data" / "golden"
FILES = ("vlmo_relative", "vlmo_absolute")
MLM_WEIGHT = 0.25
"""The stored MLM loss is weighted as in the released vision-language stage."""


def load_golden(name: str) -> tuple[VLMo, dict[str, Tensor]]:
    """Return the model with the file's weights, and all tensors of the file."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    prefix = "state_dict/"
    state = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    absolute = "transformer.pos_embed" in state
    config = VLMoConfig(
        vocab_size=1000,
        embed_dim=64,
        depth=4,
        num_heads=4,
        fused_from=3,
        proj_dim=64,
        positions="absolute" if absolute else "relative",
        layer_scale=None if absolute else 0.1,
    )
    model = VLMo(config_for(state, config)).eval()
    import_state_dict(state, model).require(name)
    return model, tensors


@torch.no_grad()
def outputs(model: VLMo, given: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (name, ours, theirs) of each output and loss."""
    mask = given["batch/text_masks"].bool()
    ids, masked_ids = given["batch/text_ids"], given["batch/text_ids_mlm"]
    image = model.encode_image(given["batch/image/0"])
    text = model.encode_text(ids, mask)
    fused = model.fuse(image, text)
    masked = model.fuse(image, model.encode_text(masked_ids, mask)).text_tokens
    sides = {
        "image": model.embed_both_ways(TokenSequence(image.inputs)),
        "text": model.embed_both_ways(TokenSequence(text=text.inputs, text_mask=mask)),
    }
    ours = {
        "image_feats": image.tokens,
        "text_feats": text.tokens[mask],
        "fusion_image": fused.image_tokens,
        "fusion_text": fused.text_tokens[mask],
        "fusion_cls": fused.pooled,
        "itm_logits": model.match_logits(fused),
        "mlm_logits": model.word_logits(masked)[mask],
    }
    for kind, (own, both) in sides.items():
        assert both is not None
        ours |= {f"{kind}_cls": own, f"{kind}_cls_vl": both}
    for name, tensor in ours.items():
        theirs = given[f"out/{name}"]
        yield name, tensor, theirs[mask] if theirs.shape[:2] == mask.shape else theirs
    labels = given["batch/text_labels_mlm"]
    mlm = MLM_WEIGHT * token_loss(model.word_logits(masked), labels)
    yield "mlm_loss", mlm, given["loss_mlm_itc/mlm_loss"]
    scales = (given["state_dict/logit_scale"], given["state_dict/logit_vl_scale"])
    terms = [
        global_contrastive_loss(a, b, scale)
        for a, b, scale in zip(sides["image"], sides["text"], scales, strict=True)
        if a is not None and b is not None
    ]
    yield "itc_loss", torch.stack(terms).mean(), given["loss_mlm_itc/itc_loss"]


def main() -> None:
    errors = {
        f"{file}/{name}": float((ours - theirs).abs().max())
        for file in FILES
        for name, ours, theirs in outputs(*load_golden(file))
    }
    worst = max(errors, key=lambda name: errors[name])
    print(
        json.dumps(
            {
                "golden_max_error": errors[worst],
                "worst": worst,
                "errors": errors,
                "protocol": "largest absolute difference over 11 outputs and 2 losses of 2 files",
            }
        )
    )


if __name__ == "__main__":
    main()
