"""What the fine-tuning tasks share: the Task around a model, classifiers, and decoder losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.core.config import check
from triptych.models.base import GenerativeModel, VisionLanguageModel, encode_frames
from triptych.nn.decoder import DecoderMemory, TextDecoder
from triptych.nn.heads import ClassificationHead
from triptych.objectives import IGNORE_INDEX
from triptych.objectives.mlm import shift_targets

M = TypeVar("M", bound=VisionLanguageModel)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig:
    """A classifier on a pooled state.

    Attributes:
        hidden_ratio: Width of the hidden layer relative to the state (VLMo: 2, FLAVA: 1); 0 is a
            linear head.
        norm: Whether a LayerNorm precedes the activation (VLMo: yes, FLAVA: no).
        activation: Activation between the layers (VLMo: gelu, FLAVA: relu).
        dropout: Dropout probability of hidden units (VLMo: 0, FLAVA: 0.5).
    """

    hidden_ratio: float = 2.0
    norm: bool = True
    activation: Literal["relu", "gelu", "tanh"] = "gelu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check(self.hidden_ratio >= 0, "hidden_ratio", self.hidden_ratio, "be at least 0")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "be in [0, 1)")

    def build(self, embed_dim: int, num_classes: int) -> ClassificationHead:
        """Return the head with random weights, N(0, 0.02²)."""
        return ClassificationHead(
            embed_dim,
            num_classes,
            hidden_dim=round(self.hidden_ratio * embed_dim),
            norm=self.norm,
            activation=self.activation,
            dropout=self.dropout,
        )


FLAVA_HEAD = HeadConfig(hidden_ratio=1.0, norm=False, activation="relu", dropout=0.5)
"""The classifier that FLAVA's authors fine-tune: 768-768-C."""


class ModelTask(Generic[M]):
    """A Task of a model, with a classifier if it has one, that changes nothing after a step.

    `modules` are "model" and, with a classifier, "head". A model folder stores the head beside the
    model. Its parameters take the learning rate times `OptimConfig.head_learning_rate_factor`.
    """

    def __init__(self, model: M, head: nn.Module | None = None) -> None:
        modules = {"model": cast(nn.Module, model)}
        self.modules = nn.ModuleDict(modules if head is None else modules | {"head": head})

    @property
    def model(self) -> M:
        """The model that is trained."""
        return cast(M, self.modules["model"])

    def scores(self, pooled: Tensor) -> Tensor:
        """Return the head's (B, C) float32 scores of pooled states (B, D)."""
        return cast(Tensor, self.modules["head"](pooled)).float()

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
    model: GenerativeModel, image: Tensor, token_ids: Tensor, text_mask: Tensor
) -> DecoderMemory:
    """Fuse images (B, 3, H, W), or clips (B, F, 3, H, W), with texts (B, L) for the decoder."""
    images = encode_frames(model, image)
    return model.decoder_memory(images, model.fuse(images, model.encode_text(token_ids, text_mask)))


def target_log_probs(
    decoder: TextDecoder, token_ids: Tensor, mask: Tensor, memory: DecoderMemory
) -> Tensor:
    """Return the log-probabilities that the decoder gives to texts; only real tokens are scored.

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
    log_probs = -F.cross_entropy(logits, labels[read], reduction="none")
    return torch.zeros(labels.shape, device=log_probs.device).masked_scatter(read, log_probs)
