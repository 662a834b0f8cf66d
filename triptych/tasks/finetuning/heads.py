"""What the tasks share that put a classifier on a model: its config, and the Task around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor, nn

from triptych.core.config import check
from triptych.models.base import VisionLanguageModel
from triptych.nn.heads import ClassificationHead


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig:
    """A classifier on a pooled state.

    Attributes:
        hidden_ratio: Width of the hidden layer over that of the state (VLMo: 2, FLAVA: 1); 0 is a
            linear head.
        norm: Whether a LayerNorm stands before the activation (VLMo: yes, FLAVA: no).
        activation: Between the layers (VLMo: gelu, FLAVA: relu).
        dropout: Share of hidden units that training drops (VLMo: 0, FLAVA: 0.5).
    """

    hidden_ratio: float = 2.0
    norm: bool = True
    activation: Literal["relu", "gelu", "tanh"] = "gelu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check(self.hidden_ratio >= 0, "hidden_ratio", self.hidden_ratio, "be at least 0")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "be in [0, 1)")

    def build(self, embed_dim: int, num_classes: int) -> ClassificationHead:
        """Return the head with fresh weights, N(0, 0.02²)."""
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


class HeadTask:
    """A Task of a model and a classifier; `modules` are "model" and "head".

    A model folder stores the head beside the model. The head's parameters take the learning rate
    times `OptimConfig.head_learning_rate_factor`.
    """

    def __init__(self, model: VisionLanguageModel, head: nn.Module) -> None:
        self.modules = nn.ModuleDict({"model": cast(nn.Module, model), "head": head})

    @property
    def model(self) -> VisionLanguageModel:
        """The model that is trained."""
        return cast(VisionLanguageModel, self.modules["model"])

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
