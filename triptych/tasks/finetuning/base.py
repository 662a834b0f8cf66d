"""What the fine-tuning tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from triptych.models.mplug.model import MPLUG
from triptych.objectives import IGNORE_INDEX


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


def empty_texts(batch: Mapping[str, Tensor], cls_id: int) -> tuple[Tensor, Tensor]:
    """Return ids (B, 1) and mask (B, 1) of texts that hold only [CLS]."""
    size, device = len(batch["image"]), batch["image"].device
    ids = torch.full((size, 1), cls_id, dtype=torch.int64, device=device)
    return ids, torch.ones_like(ids, dtype=torch.bool)


def read_positions(labels: Tensor) -> Tensor:
    """Return a bool mask of the positions that a token loss reads."""
    return labels != IGNORE_INDEX
