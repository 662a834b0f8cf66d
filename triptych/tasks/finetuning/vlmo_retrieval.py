"""VLMo's image-text retrieval: the dual encoder by ITC, and ITM for re-ranking if wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from triptych.core.outputs import Predictions
from triptych.models.vlmo.model import VLMo
from triptych.tasks.pretraining.vlmo import VLMoPretraining, VLMoPretrainingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class VLMoRetrievalConfig:
    """Settings of retrieval.

    Attributes:
        temperature: Start value of τ.
        min_temperature: Lower clamp of τ.
        max_temperature: Upper clamp of τ.
    """

    KIND: ClassVar[str] = "vlmo_retrieval"

    temperature: float = 0.07
    min_temperature: float = 0.01
    max_temperature: float = 1.0


class VLMoRetrieval:
    """ITC through the modality experts; with a weight for it, ITM through the fusion encoder.

    The released code fine-tunes by ITC alone.
    """

    batch_keys = frozenset({"image", "token_ids", "text_mask", "image_key", "caption_key", "index"})
    objective_names = frozenset({"itc", "itm"})

    def __init__(self, model: VLMo, config: VLMoRetrievalConfig) -> None:
        self._pretraining = VLMoPretraining(
            model,
            VLMoPretrainingConfig(
                temperature=config.temperature,
                min_temperature=config.min_temperature,
                max_temperature=config.max_temperature,
            ),
        )
        model.mlm_head.requires_grad_(False)

    @property
    def modules(self) -> nn.ModuleDict:
        """The model and the temperature."""
        return self._pretraining.modules

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"itc", "itm"}, as far as active."""
        return self._pretraining.losses(batch, active=active & self.objective_names)

    def after_step(self, step: int) -> None:
        """Clamp the temperature."""
        self._pretraining.after_step(step)

    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return the embeddings of both sides."""
        return self._pretraining.predict(batch)
