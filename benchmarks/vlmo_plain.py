"""VLMo's third stage as the released code computes it: what the fast path is measured against.

Texts padded to a fixed length, every block whole, ITM as three fusion passes, MLM as one more, the
word head on all positions. The same losses and gradients, more work.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.core.outputs import ImageFeatures, TextFeatures
from triptych.models.vlmo.model import VLMo
from triptych.models.vlmo.trunk import TokenSequence
from triptych.objectives.matching import itm_loss
from triptych.objectives.mlm import token_loss
from triptych.tasks.pretraining.vlmo import Embedded, VLMoPretraining, itm_labels


def plain_losses(
    task: VLMoPretraining, batch: Mapping[str, Tensor], length: int = 40
) -> dict[str, Tensor]:
    """Return ITC, ITM and MLM with whole, separate passes over padded texts."""
    batch = padded(batch, length)
    model, mask = task.model, batch["text_mask"]
    image, text = _image(model, batch["image"]), _text(model, batch["token_ids"], mask)
    embedded = _embedded(task, image, text)
    negatives = task.hard_negatives(batch, embedded)
    candidates = image
    if len(negatives.images):
        candidates = _image(model, torch.cat([batch["image"], negatives.images]))
    wrong_image = candidates.select(negatives.image_index)
    wrong_text = _text(model, negatives.token_ids, negatives.text_mask)
    logits = [
        model.match_logits(model.fuse(one, other))
        for one, other in ((image, text), (wrong_image, text), (image, wrong_text))
    ]
    masked = _text(model, batch["mlm_token_ids"], mask)
    words = model.word_logits(model.fuse(image, masked).text_tokens)
    return {
        "itc": task.itc(batch, embedded),
        "itm": itm_loss(torch.cat(logits), itm_labels(negatives)),
        "mlm": token_loss(words, batch["mlm_labels"]),
    }


def padded(batch: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """Return a batch whose texts are padded to a fixed length."""
    result = dict(batch)
    for name in ("token_ids", "text_mask", "mlm_token_ids", "mlm_labels"):
        value = -100 if name == "mlm_labels" else 0
        result[name] = F.pad(batch[name], (0, length - batch[name].shape[1]), value=value)
    return result


def _image(model: VLMo, pixels: Tensor) -> ImageFeatures:
    inputs = model.image_inputs(pixels)
    return ImageFeatures(inputs, inputs=inputs)  # `fuse` reads the inputs alone


def _text(model: VLMo, token_ids: Tensor, mask: Tensor) -> TextFeatures:
    inputs = model.text_inputs(token_ids)
    return TextFeatures(inputs, mask, inputs=inputs)


def _embedded(task: VLMoPretraining, image: ImageFeatures, text: TextFeatures) -> Embedded:
    """Embed both sides with every block whole."""
    model = task.model
    sides = (TokenSequence(image.tokens), TokenSequence.text(text.tokens, text.mask))
    embed = (model.embed_image, model.embed_text)
    if not task.config.fused_itc:
        found = [e(ImageFeatures(model.trunk(s))) for e, s in zip(embed, sides, strict=True)]
        return Embedded((found[0],), (found[1],), task.logit_scales)
    heads = (model.fused_image_projection, model.fused_text_projection)
    found = []
    for sequence, own_head, head in zip(sides, embed, heads, strict=True):
        size, length, _ = sequence.tokens.shape
        everything = torch.arange(length).expand(size, -1)
        own, fused = model.trunk.branches(sequence, everything)
        assert head is not None
        found.append((own_head(ImageFeatures(own)), F.normalize(head(fused[:, 0]).float(), dim=-1)))
    return Embedded(found[0], found[1], task.logit_scales)
