"""NLVR2: say whether a statement is true of two images (paper, section 5.2.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn

from triptych.core.config import check
from triptych.core.outputs import Predictions
from triptych.models.mplug.model import MPLUG
from triptych.models.mplug.pairs import PairFusion
from triptych.tasks.finetuning.heads import HeadConfig, HeadTask
from triptych.tasks.finetuning.image_text_classification import class_loss, class_predictions

TRUTH = ("false", "true")
"""The classes, in the order of the scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NLVR2Config:
    """Settings of judging statements about two images.

    Attributes:
        merge: How what the text reads in the two images becomes one: "mean", or "linear", a
            layer that begins as the mean. The paper says "merged"; BLIP has the mean in its lower
            six layers and a linear layer in the upper six.
        max_text_tokens: Longest statement, [CLS] and [SEP] counted.
        swap_probability: Share of training samples whose images change places, and the words
            left and right with them (released dataset code: half).
        head: The classifier on the fused text [CLS] (paper: an MLP; ALBEF, BLIP: 768-768-2, ReLU).
    """

    merge: Literal["mean", "linear"] = "mean"
    max_text_tokens: int = 40
    swap_probability: float = 0.5
    head: HeadConfig = field(
        default_factory=lambda: HeadConfig(hidden_ratio=1.0, norm=False, activation="relu")
    )

    def __post_init__(self) -> None:
        """Reject values out of range."""
        check(self.max_text_tokens >= 3, "max_text_tokens", self.max_text_tokens, "be at least 3")
        share = self.swap_probability
        check(0 <= share <= 1, "swap_probability", share, "be from 0 to 1")


class PairHead(nn.Module):
    """What a model needs on top to judge two images: second branches and a classifier."""

    def __init__(self, model: MPLUG, config: NLVR2Config) -> None:
        super().__init__()
        self.pairs = PairFusion(model, config.merge)
        self.classifier = config.head.build(model.feature_dims.fused, len(TRUTH))


class NLVR2(HeadTask):
    """Cross-entropy on true or false; the decoder is not used.

    Args:
        model: Its fusion network must be one that can read two images.
        config: Merge and classifier.

    Raises:
        CapabilityError: The model's fusion network cannot read two images.
    """

    batch_keys = frozenset({"image", "token_ids", "text_mask", "label", "index"})
    objective_names = frozenset({"classification"})

    def __init__(self, model: MPLUG, config: NLVR2Config) -> None:
        super().__init__(model, PairHead(model, config))
        self.config = config

    def pair_scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return (B, 2) float32 scores of false and true.

        Args:
            batch: `image` (B, 2, 3, H, W), `token_ids` and `text_mask` (B, L).
        """
        model, head = cast(MPLUG, self.modules["model"]), cast(PairHead, self.modules["head"])
        both = batch["image"].transpose(0, 1).flatten(0, 1)  # (2·B, 3, H, W): first ones first
        states = model.encode_image(both).tokens
        images = states.reshape(2, -1, *states.shape[1:])  # (2, B, N, D)
        text = model.encode_text(batch["token_ids"], batch["text_mask"])
        fused = head.pairs(model, images, text.tokens, text.mask)  # (B, L, D)
        return cast(Tensor, head.classifier(fused[:, 0])).float()

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"classification": mean cross-entropy}."""
        del active
        return {"classification": class_loss(self.pair_scores(batch), batch["label"])}

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Judge each statement; reads no `label`."""
        return class_predictions(batch, self.pair_scores(batch), TRUTH)
