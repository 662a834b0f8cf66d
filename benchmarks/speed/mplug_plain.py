"""mPLUG pre-training the long way: a pass an objective, to prove and to time the short way against.

As the code that was derived from the released modules does it: image and caption are encoded once;
then each objective encodes its own text, runs the fusion network on its own rows (ITM twice, for
positives and for negatives, whose image states are copied), computes its padding like any token and
scores all positions against the vocabulary. The teacher does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor

from benchmarks.speed.plain import without_shortcuts
from triptych.core.outputs import FusedFeatures, ImageFeatures, TextFeatures
from triptych.models.mplug.model import MPLUG
from triptych.objectives.matching import itm_loss
from triptych.objectives.mlm import distillation_loss, shift_targets, token_loss
from triptych.objectives.momentum import MomentumEncoder
from triptych.tasks.pretraining.mplug import OBJECTIVES, MPLUGPretraining, TeacherPass

_LogitsOf = Callable[[MPLUG, ImageFeatures], Tensor]


def plain_losses(
    task: MPLUGPretraining, batch: Mapping[str, Tensor], *, active: frozenset[str] = OBJECTIVES
) -> dict[str, Tensor]:
    """Return what `task.losses` returns, without any of its savings.

    The draws of hard negatives are the same after the same `core.rng.seed_step`.

    Args:
        task: The task with its model, teacher and queue.
        batch: Tensors named by the task's `batch_keys`.
        active: Objectives to compute.
    """
    with without_shortcuts():
        return _Plain(task, batch).losses(active)


class _Plain:
    def __init__(self, task: MPLUGPretraining, batch: Mapping[str, Tensor]) -> None:
        self.task, self.batch, self.model = task, batch, task.model
        self.image = self.model.encode_image(batch["image"])
        self.caption = self.model.encode_text(batch["token_ids"], batch["text_mask"])
        self.teacher: TeacherPass | None = None
        if "teacher" in task.modules:
            with torch.no_grad():
                model = cast(MPLUG, cast(MomentumEncoder, task.modules["teacher"]).module)
                self.teacher_image = model.encode_image(batch["image"])
                caption = model.encode_text(batch["token_ids"], batch["text_mask"])
                self.teacher = TeacherPass(
                    model, model.embed_image(self.teacher_image), model.embed_text(caption)
                )

    def losses(self, active: frozenset[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if active & {"itc", "itm"}:
            image = self.model.embed_image(self.image)
            text = self.model.embed_text(self.caption)
            if "itc" in active:
                found["itc"] = self.task.itc(self.batch, image, text, self.teacher)
            if "itm" in active:
                found["itm"] = self.itm(image, text)
        if "mlm" in active:
            found["mlm"] = self.words(self.mlm_logits, self.batch["mlm_labels"], "mlm")
        if "prefix_lm" in active:
            _, labels = shift_targets(self.batch["target_token_ids"], self.batch["target_mask"])
            found["prefix_lm"] = self.words(self.prefix_logits, labels, "prefix_lm")
        return found

    def itm(self, image: Tensor, text: Tensor) -> Tensor:
        """Fuse the pairs, then the negatives of both kinds."""
        negatives = self.task.hard_negatives(self.batch, image, text)
        negative_text, negative_image = negatives.texts.position, negatives.images.position
        positives = self.model.fuse(self.image, self.caption)
        images = torch.cat([self.image.tokens[negative_image], self.image.tokens])
        texts = TextFeatures(
            torch.cat([self.caption.tokens, self.caption.tokens[negative_text]]),
            torch.cat([self.caption.mask, self.caption.mask[negative_text]]),
        )
        wrong = self.model.fuse(ImageFeatures(images), texts)
        logits = [self.model.match_logits(fused) for fused in (positives, wrong)]
        return itm_loss(torch.cat(logits), negatives.labels.T.flatten())

    def mlm_logits(self, model: MPLUG, image: ImageFeatures) -> Tensor:
        """Score every position of the masked captions: (B, L, V)."""
        fused = self.fused(model, image, "mlm_token_ids", "text_mask")
        return model.word_logits(fused.text_tokens)

    def prefix_logits(self, model: MPLUG, image: ImageFeatures) -> Tensor:
        """Score every position of the rest of the captions: (B, L, V)."""
        fused = self.fused(model, image, "prefix_token_ids", "prefix_mask")
        inputs, _ = shift_targets(self.batch["target_token_ids"], self.batch["target_mask"])
        states = model.decode(inputs, model.decoder_memory(image, fused))
        return model.decoder.word_logits(states)

    def fused(self, model: MPLUG, image: ImageFeatures, ids: str, mask: str) -> FusedFeatures:
        return model.fuse(image, model.encode_text(self.batch[ids], self.batch[mask]))

    def words(self, logits_of: _LogitsOf, labels: Tensor, name: str) -> Tensor:
        """Return cross-entropy, mixed with the teacher's words if the task says so."""
        logits = logits_of(self.model, self.image)
        loss = token_loss(logits, labels)
        if self.teacher is None or not getattr(self.task.config, f"distill_{name}"):
            return loss
        with torch.no_grad():
            taught = logits_of(self.teacher.model, self.teacher_image)
        alpha = self.task.alpha()
        return (1 - alpha) * loss + alpha * distillation_loss(logits, taught, labels)
