"""Visual question answering as generation (paper, section 5.2.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.core.outputs import Predictions
from triptych.generation.beam import BeamConfig, beam_search
from triptych.generation.cached import CachedDecoder
from triptych.models.mplug.model import MPLUG
from triptych.nn.decoder import DecoderMemory
from triptych.objectives import IGNORE_INDEX
from triptych.objectives.mlm import shift_targets
from triptych.tasks.finetuning.base import ModelTask, read_positions
from triptych.tasks.finetuning.captioning import Decode


@dataclass(frozen=True, kw_only=True, slots=True)
class VQAConfig:
    """Settings of visual question answering.

    Attributes:
        beam: The search (released: 5 beams, 1 to 10 tokens).
    """

    beam: BeamConfig = field(
        default_factory=lambda: BeamConfig(num_beams=5, min_tokens=1, max_tokens=10)
    )


class VQA(ModelTask):
    """Generate the answer; the words are free, no closed answer list."""

    batch_keys = frozenset(
        {
            "image",
            "token_ids",
            "text_mask",
            "answer_token_ids",
            "answer_mask",
            "answer_weight",
            "answer_row",
            "index",
        }
    )
    objective_names = frozenset({"vqa"})

    def __init__(
        self, model: MPLUG, config: VQAConfig, *, cls_id: int, sep_id: int, decode: Decode
    ) -> None:
        super().__init__(model)
        self.config = config
        self.cls_id, self.sep_id, self.decode = cls_id, sep_id, decode

    def memory(self, batch: Mapping[str, Tensor]) -> DecoderMemory:
        """Fuse picture and question to what the decoder reads."""
        image = self.model.encode_image(batch["image"])
        question = self.model.encode_text(batch["token_ids"], batch["text_mask"])
        return self.model.decoder_memory(image, self.model.fuse(image, question))

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"vqa": Σ weight · cross-entropy summed over the answer / pictures}."""
        del active
        memory = self.memory(batch).select(batch["answer_row"])
        inputs, labels = shift_targets(batch["answer_token_ids"], batch["answer_mask"])
        states = self.model.decode(inputs, memory)
        read = read_positions(labels)
        logits = self.model.decoder.word_logits(states[read]).float()
        per_token = F.cross_entropy(
            logits, labels[read], ignore_index=IGNORE_INDEX, reduction="none"
        )
        weight = batch["answer_weight"][:, None].expand_as(labels)[read]
        return {"vqa": (weight * per_token).sum() / len(batch["image"])}

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Answer each question; reads `image`, `token_ids`, `text_mask` and `index`."""
        found = beam_search(
            CachedDecoder(self.model.decoder, self.memory(batch)),
            start_id=self.cls_id,
            end_id=self.sep_id,
            config=self.config.beam,
        )
        return Predictions(
            index=batch["index"].tolist(), texts=[self.decode(h[0].token_ids) for h in found]
        )
