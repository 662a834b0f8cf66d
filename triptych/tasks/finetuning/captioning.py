"""Captioning: say what a picture shows (paper, section 5.2.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from triptych.core.outputs import Predictions
from triptych.generation.beam import BeamConfig, Hypothesis, beam_search
from triptych.generation.cached import CachedDecoder
from triptych.models.mplug.model import MPLUG
from triptych.nn.decoder import DecoderMemory
from triptych.objectives.mlm import shift_targets, token_loss
from triptych.tasks.finetuning.base import ModelTask, empty_texts, read_positions

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptioningConfig:
    """Settings of captioning.

    Attributes:
        beam: The search (released: 5 beams, 8 to 25 tokens; paper: 10 beams, at most 20).
    """

    beam: BeamConfig = field(
        default_factory=lambda: BeamConfig(num_beams=5, min_tokens=1, max_tokens=30)
    )


class Captioning(ModelTask):
    """Cross-entropy on the caption, given the picture.

    The decoder reads the fusion of the picture with an empty text, as PrefixLM does with an empty
    prefix, or image states alone where the model's config says `decoder_memory = "image"`.
    """

    batch_keys = frozenset({"image", "target_token_ids", "target_mask", "index"})
    objective_names = frozenset({"caption"})

    def __init__(
        self, model: MPLUG, config: CaptioningConfig, *, cls_id: int, sep_id: int, decode: Decode
    ) -> None:
        super().__init__(model)
        self.config = config
        self.cls_id, self.sep_id, self.decode = cls_id, sep_id, decode

    def memory(self, batch: Mapping[str, Tensor]) -> DecoderMemory:
        """Encode `image` (B, 3, H, W) to what the decoder reads."""
        image = self.model.encode_image(batch["image"])
        if self.model.config.decoder_memory == "image":
            return self.model.decoder_memory(image)
        text = self.model.encode_text(*empty_texts(batch, self.cls_id))
        return self.model.decoder_memory(image, self.model.fuse(image, text))

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"caption": mean cross-entropy over target tokens}."""
        del active
        inputs, labels = shift_targets(batch["target_token_ids"], batch["target_mask"])
        states = self.model.decode(inputs, self.memory(batch))
        read = read_positions(labels)
        return {"caption": token_loss(self.model.decoder.word_logits(states[read]), labels[read])}

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Generate a caption for each picture; reads `image` and `index`."""
        found = self.search(batch)
        return Predictions(
            index=batch["index"].tolist(), texts=[self.decode(h[0].token_ids) for h in found]
        )

    def search(self, batch: Mapping[str, Tensor]) -> list[list[Hypothesis]]:
        """Return the n-best captions of each picture, best first."""
        step = CachedDecoder(self.model.decoder, self.memory(batch))
        return beam_search(step, start_id=self.cls_id, end_id=self.sep_id, config=self.config.beam)
