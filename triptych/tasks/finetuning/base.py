"""What the fine-tuning tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.models.mplug.model import MPLUG
from triptych.nn.decoder import DecoderMemory, TextDecoder
from triptych.objectives import IGNORE_INDEX
from triptych.objectives.mlm import shift_targets


class ModelTask:
    """A Task whose only module is the model and that changes nothing after a step."""

    def __init__(self, model: MPLUG) -> None:
        self.modules = nn.ModuleDict({"model": model})

    @property
    def model(self) -> MPLUG:
        """The model that is trained."""
        return cast(MPLUG, self.modules["model"])

    def after_step(self, step: int) -> None:
        """Do nothing: there is no teacher, no queue and no temperature."""
        del step

    def extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold besides tensors: nothing."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` returned."""
        del state


def constant_texts(batch: Mapping[str, Tensor], ids: list[int]) -> tuple[Tensor, Tensor]:
    """Return ids (B, L) and mask (B, L) of the same text for each image."""
    row = torch.tensor([ids], dtype=torch.int64, device=batch["image"].device)
    token_ids = row.expand(len(batch["image"]), -1)
    return token_ids, torch.ones_like(token_ids, dtype=torch.bool)


def fused_memory(
    model: MPLUG, image: Tensor, token_ids: Tensor, text_mask: Tensor
) -> DecoderMemory:
    """Fuse images (B, 3, H, W) with texts (B, L) to what the decoder reads."""
    images = model.encode_image(image)
    return model.decoder_memory(images, model.fuse(images, model.encode_text(token_ids, text_mask)))


def target_log_probs(
    decoder: TextDecoder, token_ids: Tensor, mask: Tensor, memory: DecoderMemory
) -> Tensor:
    """Return how likely the decoder is to say given texts; only real tokens are scored.

    Args:
        decoder: With its dropout as it is set.
        token_ids: (B, L) int64, `[CLS] word ... [SEP]`, padded on the right.
        mask: (B, L) bool, True = real token.
        memory: Of the same B rows.

    Returns:
        (B, L - 1) float32 log-probabilities of the tokens from the second on; 0 at padding.
    """
    inputs, labels = shift_targets(token_ids, mask)
    read = labels != IGNORE_INDEX
    logits = decoder.word_logits(decoder(inputs, memory)[read]).float()  # (real tokens, V)
    said = -F.cross_entropy(logits, labels[read], reduction="none")
    return torch.zeros(labels.shape, device=said.device).masked_scatter(read, said)
