"""VLMo's third stage as the released code computes it: what the fast path is measured against.

Texts padded to a fixed length, every block whole, ITM as three fusion passes, MLM as one more, the
word head on all positions. The same losses and gradients, more work.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.speed.plain import without_shortcuts
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
    with without_shortcuts():
        return _plain_losses(task, padded(batch, length))


def _plain_losses(task: VLMoPretraining, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
    sides = (
        (TokenSequence(image.tokens), model.image_projection, model.fused_image_projection),
        (
            TokenSequence(text=text.tokens, text_mask=text.mask),
            model.text_projection,
            model.fused_text_projection,
        ),
    )
    found: list[tuple[Tensor, ...]] = []
    for sequence, *heads in sides:
        length = sequence.num_image or sequence.num_text
        everything = torch.arange(length).expand(sequence.num_rows, -1)
        if task.config.fused_itc:
            states = model.trunk.branches(sequence, everything)
        else:
            states = tuple(model.trunk.read(sequence, [(slice(None), everything)]))
        pairs = zip(states, heads, strict=False)
        found.append(tuple(F.normalize(head(x[:, 0]).float(), dim=-1) for x, head in pairs))
    return Embedded(found[0], found[1], task.logit_scales)
