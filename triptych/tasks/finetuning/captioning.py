"""Captioning: describe an image (paper, section 5.2.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.core.config import check
from triptych.core.outputs import Predictions
from triptych.data.collate import (
    CaptioningCollator,
)
from triptych.data.collate.base import image_key
from triptych.data.records import Record
from triptych.evaluation.metrics import (
    CaptionMetric,
    Metric,
)
from triptych.evaluation.perplexity import PerplexityMetric
from triptych.generation.search import BeamConfig, Hypothesis
from triptych.models.base import GenerativeModel, encode_frames
from triptych.nn.decoder import DecoderMemory
from triptych.objectives import IGNORE_INDEX
from triptych.objectives.mlm import shift_targets, token_loss
from triptych.tasks.finetuning.base import ModelTask, constant_texts, fused_memory
from triptych.tasks.finetuning.text_generator import (
    GenerationSettings,
    TextGenerator,
    encode_in_parts,
)
from triptych.tasks.spec import (
    CollatorInputs,
    Evaluation,
    TaskConfig,
    TaskRecipe,
    TaskSpec,
    TrainedModels,
)
from triptych.text import Tokenizer
from triptych.train.chance import Chance


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptioningConfig(TaskConfig):
    """Settings of captioning.

    Attributes:
        beam: The search (released: 5 beams, 8 to 25 tokens; paper: 10 beams, at most 20).
        memory: What the decoder reads: "fused", the image fused with an empty text (paper);
            "image", the image states alone, so that text encoder and fusion network are unused
            (released code); "model", what the model's config says.
        prompt: Words that precede each caption and are not trained on, such as "a picture of"
            (released: none); captions are returned without them.
        prompt_to: Who reads the prompt: the "decoder", as the beginning of its text (released
            zero-shot code), or the "encoder", as the text that is fused with the image (paper,
            section 5.4.1), which needs fused memory.
    """

    beam: BeamConfig = field(
        default_factory=lambda: BeamConfig(num_beams=5, min_tokens=1, max_tokens=30)
    )
    memory: Literal["model", "fused", "image"] = "model"
    prompt: str = ""
    prompt_to: Literal["decoder", "encoder"] = "decoder"


class Captioning(ModelTask[GenerativeModel]):
    """Cross-entropy on the caption, given the image.

    The decoder reads the fusion of the image with an empty text, as PrefixLM does with an empty
    prefix, or image states alone.

    Args:
        model: The model to train.
        config: Memory, prompt and search.
        tokenizer: The tokenizer it was trained with.

    Raises:
        ConfigError: The model's decoder cannot read what `memory` or `prompt_to` ask for.
    """

    batch_keys = frozenset({"image", "target_token_ids", "target_mask", "index"})
    objective_names = frozenset({"caption"})

    def __init__(
        self, model: GenerativeModel, config: CaptioningConfig, tokenizer: Tokenizer
    ) -> None:
        super().__init__(model)
        self.config = config
        own = model.decoder_reads
        self.reads_image = (own if config.memory == "model" else config.memory) == "image"
        check(
            own == "fused" or self.reads_image,
            "memory",
            config.memory,
            "be 'model' or 'image': this model's decoder_memory is 'image'",
        )
        to_encoder = config.prompt_to == "encoder"
        check(
            not (to_encoder and self.reads_image),
            "prompt_to",
            config.prompt_to,
            "be 'decoder': the decoder reads image states alone, no text is encoded",
        )
        self.text_generator = TextGenerator(model.decoder, tokenizer)
        self.generation = GenerationSettings()
        self._use_prompt(config.prompt)

    def _use_prompt(self, prompt: str) -> None:
        """Give the prompt to the decoder or to the encoder, as configured."""
        to_encoder = self.config.prompt_to == "encoder"
        ids = self.text_generator.ids(prompt)
        self.text_generator.prompt_ids = [] if to_encoder else ids
        cls_id = self.text_generator.tokenizer.cls_id
        self._text_ids = [cls_id, *ids] if to_encoder else [cls_id]

    def generate_with(self, settings: GenerationSettings) -> None:
        """Generate as these settings say from now on; see `GeneratingTask`."""
        self.generation = settings
        self.config = replace(self.config, beam=settings.beam(self.config.beam))
        settings.sampling(self.config.beam)
        if settings.prompt is not None:
            self._use_prompt(settings.prompt)

    def memory(self, batch: Mapping[str, Tensor]) -> DecoderMemory:
        """Encode `image`, (B, 3, H, W) or clips (B, F, 3, H, W), to what the decoder reads."""
        if self.reads_image:
            image = encode_frames(self.model, batch["image"])
            return self.model.decoder.project_memory(image.tokens, None)
        return fused_memory(self.model, batch["image"], *constant_texts(batch, self._text_ids))

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"caption": mean cross-entropy over target tokens, the prompt's excluded}."""
        del active
        states, labels = self._states_of_targets(batch)
        read = labels != IGNORE_INDEX
        return {"caption": token_loss(self.model.decoder.word_logits(states[read]), labels[read])}

    @torch.no_grad()
    def likelihood(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return the summed "nll" in nats and the "tokens" of each caption, [SEP] among them."""
        states, labels = self._states_of_targets(batch)
        read = labels != IGNORE_INDEX
        logits = self.model.decoder.word_logits(states[read]).float()
        losses = F.cross_entropy(logits, labels[read], reduction="none").double()
        nll = torch.zeros(labels.shape, dtype=torch.float64, device=losses.device)
        nll = nll.masked_scatter(read, losses).sum(dim=1)
        scores = {"nll": nll.cpu(), "tokens": read.sum(dim=1).cpu()}
        return Predictions(index=batch["index"].tolist(), scores=scores)

    def _states_of_targets(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return decoder states (B, L, D), and labels (B, L), IGNORE_INDEX where none is read."""
        token_ids, mask = batch["target_token_ids"], batch["target_mask"]
        prompt = self.text_generator.prompt(len(token_ids), token_ids.device)
        token_ids = torch.cat([token_ids[:, :1], prompt, token_ids[:, 1:]], dim=1)
        forced = torch.ones_like(prompt, dtype=torch.bool)
        inputs, labels = shift_targets(
            token_ids, torch.cat([mask[:, :1], forced, mask[:, 1:]], dim=1)
        )
        labels[:, : prompt.shape[1]] = IGNORE_INDEX
        return self.model.decode(inputs, self.memory(batch)), labels

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Generate a caption for each image; reads `image` and `index`."""
        index = batch["index"].tolist()
        texts = self.text_generator.texts(
            encode_in_parts(self.memory, batch, ("image",)),
            self.config.beam,
            self.generation,
            index,
        )
        return Predictions(index=index, texts=texts)

    def search(self, batch: Mapping[str, Tensor]) -> list[list[Hypothesis]]:
        """Return the n-best captions of each image, best first."""
        memories = encode_in_parts(self.memory, batch, ("image",))
        return self.text_generator.search(memories, self.config.beam)


def caption_references(
    records: Sequence[Record], all_records: Sequence[Record]
) -> dict[int, list[str]]:
    """Return all captions of each record's image, by position."""
    by_image: dict[int, list[str]] = {}
    for record in all_records:
        if record.caption:
            by_image.setdefault(image_key(record), []).append(record.caption)
    return {i: by_image[image_key(record)] for i, record in enumerate(records)}


def _caption_metrics(
    config: CaptioningConfig, records: Sequence[Record], all_records: Sequence[Record]
) -> list[Metric]:
    del config
    domains = {i: record.domain for i, record in enumerate(records)}
    return [CaptionMetric(caption_references(records, all_records), domains=domains)]


def _likelihood_metrics(
    config: CaptioningConfig, records: Sequence[Record], all_records: Sequence[Record]
) -> list[Metric]:
    del config, all_records
    protocol = "Perplexity of people's captions given their images, per token, [SEP] among them."
    return [PerplexityMetric(len(records), "perplexity", protocol)]


def _captions(config: CaptioningConfig, inputs: CollatorInputs) -> CaptioningCollator:
    del config
    return CaptioningCollator(
        inputs.tokenizer, max_text_tokens=inputs.captions.max_text_tokens, train=inputs.train
    )


SPEC = TaskSpec(
    config=CaptioningConfig,
    trained_for="captioning",
    build=lambda config, model, tokenizer, _: Captioning(model, config, tokenizer),
    collator=_captions,
    needs=("image|video", "caption"),
    models=TrainedModels(capabilities=("decode",)),
    recipes=(TaskRecipe("mplug.caption", "mplug"),),
    serves=("caption",),
    evaluations=(
        Evaluation(
            "caption",
            "caption",
            _caption_metrics,
            one_per_image=True,
            reads_clips=True,
            decides="cider",
            kept=("text",),
            forms=("coco",),
        ),
        Evaluation(
            "perplexity",
            "caption",
            _likelihood_metrics,
            reads=("caption",),
            method="likelihood",
            reads_clips=True,
        ),
    ),
    chances=lambda config: {
        "caption": Chance(labels="target_token_ids", mask="target_mask", skip=1)
    },
)
