"""NLVR2 with VLMo: the states of both pairs side by side (released code; paper, section 3.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch
from torch import Tensor

from triptych.core.config import check
from triptych.core.outputs import Predictions
from triptych.models.vlmo.model import VLMo
from triptych.tasks.finetuning.heads import HeadConfig, HeadTask
from triptych.tasks.finetuning.image_text_classification import class_loss, class_predictions
from triptych.tasks.finetuning.nlvr2 import TRUTH


@dataclass(frozen=True, kw_only=True, slots=True)
class VLMoNLVR2Config:
    """Settings of judging statements about two images.

    Attributes:
        max_text_tokens: Longest statement, [CLS] and [SEP] counted.
        swap_probability: Share of training samples whose images change places, and the words
            left and right with them; the released code leaves them in place.
        head: The classifier on both states together (released: as wide as both, LayerNorm, GELU).
    """

    KIND: ClassVar[str] = "vlmo_nlvr2"

    max_text_tokens: int = 40
    swap_probability: float = 0.0
    head: HeadConfig = field(default_factory=lambda: HeadConfig(hidden_ratio=1.0))

    def __post_init__(self) -> None:
        """Reject values out of range."""
        check(self.max_text_tokens >= 3, "max_text_tokens", self.max_text_tokens, "be at least 3")
        share = self.swap_probability
        check(0 <= share <= 1, "swap_probability", share, "be from 0 to 1")


class VLMoNLVR2(HeadTask):
    """Cross-entropy on true or false, from (text, first image) and (text, second image).

    The second image has a type row of its own, which begins as a copy of the first's.

    Args:
        model: Gets the type row if it has none.
        config: Settings.
    """

    batch_keys = frozenset({"image", "token_ids", "text_mask", "label", "index"})
    objective_names = frozenset({"classification"})

    def __init__(self, model: VLMo, config: VLMoNLVR2Config) -> None:
        if model.config.num_image_types < 2:
            model.add_image_type()
        super().__init__(model, config.head.build(2 * model.feature_dims.fused, len(TRUTH)))
        self.config = config

    def pair_scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return (B, 2) float32 scores of false and true.

        Args:
            batch: `image` (B, 2, 3, H, W), `token_ids` and `text_mask` (B, L).
        """
        model = cast(VLMo, self.modules["model"])
        states = [
            model.pair_state(batch["image"][:, i], batch["token_ids"], batch["text_mask"], i)
            for i in (0, 1)
        ]
        return self.scores(torch.cat(states, dim=1))

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"classification": mean cross-entropy}."""
        del active
        return {"classification": class_loss(self.pair_scores(batch), batch["label"])}

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Judge each statement; reads no `label`."""
        return class_predictions(batch, self.pair_scores(batch), TRUTH)
