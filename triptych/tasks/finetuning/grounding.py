"""Visual grounding by coordinate tokens (paper, section 5.2.4; released code)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.core.config import check
from triptych.core.outputs import Predictions
from triptych.data.collate import (
    GroundingCollator,
)
from triptych.data.records import Record
from triptych.evaluation.boxes import cxcywh_to_xyxy
from triptych.evaluation.metrics import (
    BoxMetric,
    Metric,
)
from triptych.generation.decoding import SlotDecoder, slots_for
from triptych.generation.search import greedy_search
from triptych.models.base import GenerativeModel
from triptych.models.mplug.model import MPLUG
from triptych.nn.decoder import DecoderMemory
from triptych.tasks.finetuning.base import ModelTask
from triptych.tasks.finetuning.text_generator import encode_in_parts
from triptych.tasks.spec import (
    CollatorInputs,
    Evaluation,
    TaskConfig,
    TaskRecipe,
    TaskSpec,
    TrainedModels,
    TrainingSetup,
)
from triptych.text import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundingConfig(TaskConfig):
    """Settings of grounding.

    Attributes:
        num_bins: Number of coordinate tokens; coordinate x in [0, 1] is bin floor(x · (num_bins -
            1)) (released: 337 bins at 336 px).
        smoothing_bins: Standard deviation, in bins, of the Gaussian around the true bin that is the
            decoder's target; 0 uses the true bin alone, as in the paper.
        length_and_overlap_weighting: Whether a token's loss is multiplied by the predicted bin's
            distance in [0, 5] and by (1 - GIoU), as in the released code.
        smooth_coordinates: Whether the initial embeddings of coordinate tokens change smoothly from
            bin to bin. Pre-training pushes all unused tokens to one point, which is slow to undo;
            the paper starts from there.
        start_unused: Which [unused...] token starts the decoder (released: 339).
        first_bin_unused: Which [unused...] token is bin 0; the other bins follow it (released:
            340).
    """

    num_bins: int = 337
    smoothing_bins: float = 0.0
    length_and_overlap_weighting: bool = False
    smooth_coordinates: bool = False
    start_unused: int = 339
    first_bin_unused: int = 340

    def __post_init__(self) -> None:
        """Reject an unusable number of bins."""
        check(self.num_bins >= 2, "num_bins", self.num_bins, "be at least 2")
        check(self.smoothing_bins >= 0, "smoothing_bins", self.smoothing_bins, "be at least 0")


class Grounding(ModelTask[GenerativeModel]):
    """Predict the box of a phrase as four tokens: centre x, centre y, width, height.

    Args:
        model: The model to train.
        config: Bins and loss.
        start_id: The decoder's start token (released: [unused339]).
        first_bin_id: Token of bin 0; bins follow each other (released: [unused340]).
    """

    batch_keys = frozenset(
        {"image", "token_ids", "text_mask", "box_cxcywh", "image_size_px", "index"}
    )
    objective_names = frozenset({"box"})

    def __init__(
        self, model: GenerativeModel, config: GroundingConfig, *, start_id: int, first_bin_id: int
    ) -> None:
        super().__init__(model)
        vocab_size = model.decoder.config.vocab_size
        check(
            first_bin_id + config.num_bins <= vocab_size,
            "num_bins",
            config.num_bins,
            f"leave the bins inside the vocabulary of {vocab_size} tokens: "
            "train the tokenizer with more unused tokens, or take fewer bins",
        )
        self.config, self.start_id, self.first_bin_id = config, start_id, first_bin_id

    def initialise(self, setup: TrainingSetup) -> None:
        """Give the coordinate tokens smooth vectors, where the settings ask for them."""
        del setup
        if self.config.smooth_coordinates:
            self.init_coordinates()

    def memory(self, batch: Mapping[str, Tensor]) -> DecoderMemory:
        """Fuse image and phrase to what the decoder reads."""
        image = self.model.encode_image(batch["image"])
        phrase = self.model.encode_text(batch["token_ids"], batch["text_mask"])
        return self.model.decoder_memory(image, self.model.fuse(image, phrase))

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"box": mean cross-entropy over the four coordinate tokens}."""
        del active
        bins = self.to_bins(batch["box_cxcywh"])  # (B, 4)
        start = torch.full_like(bins[:, :1], self.start_id)
        inputs = torch.cat([start, bins[:, :3] + self.first_bin_id], dim=1)  # (B, 4)
        states = self.model.decode(inputs, self.memory(batch))
        logits = self.model.decoder.word_logits(states).float()  # (B, 4, V)
        log_probs = torch.log_softmax(logits, dim=-1)
        log_bins = log_probs[..., self.first_bin_id : self.first_bin_id + self.config.num_bins]
        per_token = -(log_bins * self._targets(bins)).sum(dim=-1)  # (B, 4)
        if self.config.length_and_overlap_weighting:
            per_token = per_token * self._weights(log_bins.argmax(dim=-1), bins)
        return {"box": per_token.mean()}

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return boxes in pixels of the original images.

        Reads `image`, `token_ids`, `text_mask`, `image_size_px` and `index`.
        """
        vocab_size = self.model.decoder.config.vocab_size
        is_bin = torch.zeros(vocab_size, dtype=torch.bool, device=batch["image"].device)
        is_bin[self.first_bin_id : self.first_bin_id + self.config.num_bins] = True
        memories = encode_in_parts(self.memory, batch, ("image", "token_ids", "text_mask"))
        ids = greedy_search(
            SlotDecoder(self.model.decoder, memories, slots_for(1, is_bin.device)),
            start_id=self.start_id,
            end_id=-1,
            max_tokens=4,
            allowed=lambda tokens: is_bin,
        )
        bins = torch.tensor(ids) - self.first_bin_id
        size = batch["image_size_px"].cpu().float()  # (B, 2): width, height
        boxes = cxcywh_to_xyxy(self.from_bins(bins)).clamp(0, 1) * size.repeat(1, 2)
        return Predictions(index=batch["index"].tolist(), boxes_xyxy=boxes)

    @torch.no_grad()
    def init_coordinates(self) -> None:
        """Give the bins random Fourier features of their number, at the table's own scale."""
        table = self.model.decoder.embedding.word.weight  # (V, D), the decoder's head is tied to it
        bins = torch.arange(self.config.num_bins, device=table.device, dtype=table.dtype)
        half = table.shape[1] // 2
        rates = torch.randn(half).exp() * (10 / self.config.num_bins)  # radians a bin
        phases = torch.rand(half) * 2 * math.pi
        angles = bins[:, None] * rates.to(table) + phases.to(table)
        vectors = torch.cat([angles.sin(), angles.cos()], dim=1) * math.sqrt(2) * table.std()
        table[self.first_bin_id : self.first_bin_id + len(bins), : 2 * half] = vectors

    def to_bins(self, box_cxcywh: Tensor) -> Tensor:
        """Return the bins (B, 4) int64 of boxes (B, 4) in [0, 1]."""
        last = self.config.num_bins - 1
        return (box_cxcywh * last).floor().clamp(0, last).long()

    def from_bins(self, bins: Tensor) -> Tensor:
        """Return the middle of each bin (B, 4) in [0, 1]."""
        return ((bins.float() + 0.5) / (self.config.num_bins - 1)).clamp(0, 1)

    def _targets(self, bins: Tensor) -> Tensor:
        """Return (B, 4, bins) distributions around the true bins."""
        grid = torch.arange(self.config.num_bins, device=bins.device)
        distance = (grid - bins[..., None]).float()
        if self.config.smoothing_bins == 0:
            return (distance == 0).float()
        return torch.softmax(-0.5 * (distance / self.config.smoothing_bins) ** 2, dim=-1)

    def _weights(self, predicted: Tensor, bins: Tensor) -> Tensor:
        """Return the released per-token weights (B, 4): distance up to 5, times 1 - GIoU."""
        distance = (predicted - bins).abs().float().clamp(max=5)
        boxes, truth = (
            cxcywh_to_xyxy(self.from_bins(predicted)),
            cxcywh_to_xyxy(self.from_bins(bins)),
        )
        return distance * (1 - paired_giou(boxes, truth))[:, None]


def paired_giou(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """Return the generalised IoU (Rezatofighi et al. 2019) of boxes (B, 4) row by row, in [-1, 1].

    Boxes of no area have a union of no area; such a pair counts as 0 overlap.
    """
    low = torch.maximum(first_xyxy[:, :2], second_xyxy[:, :2])
    high = torch.minimum(first_xyxy[:, 2:], second_xyxy[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    areas = [(b[:, 2:] - b[:, :2]).clamp(min=0).prod(dim=1) for b in (first_xyxy, second_xyxy)]
    union = areas[0] + areas[1] - shared
    outer_low = torch.minimum(first_xyxy[:, :2], second_xyxy[:, :2])
    outer_high = torch.maximum(first_xyxy[:, 2:], second_xyxy[:, 2:])
    hull = (outer_high - outer_low).clamp(min=0).prod(dim=1)
    tiny = torch.finfo(union.dtype).tiny
    return shared / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def _build_grounding(
    config: GroundingConfig, model: MPLUG, tokenizer: Tokenizer, records: Iterable[Record]
) -> Grounding:
    del records
    first = tokenizer.unused_id(config.first_bin_unused)
    tokenizer.unused_id(config.first_bin_unused + config.num_bins - 1)
    start = tokenizer.unused_id(config.start_unused)
    return Grounding(model, config, start_id=start, first_bin_id=first)


def _grounding_collator(config: GroundingConfig, inputs: CollatorInputs) -> GroundingCollator:
    del config
    return GroundingCollator(
        inputs.tokenizer, max_text_tokens=inputs.lengths.phrase, train=inputs.train
    )


def _box_metrics(
    config: GroundingConfig, records: Sequence[Record], all_records: Sequence[Record]
) -> list[Metric]:
    del config, all_records
    return [BoxMetric({i: r.box for i, r in enumerate(records) if r.box is not None})]


SPEC = TaskSpec(
    config=GroundingConfig,
    trained_for="grounding",
    build=_build_grounding,
    collator=_grounding_collator,
    needs=("image", "phrase", "box"),
    models=TrainedModels(capabilities=("decode",)),
    recipes=(
        TaskRecipe("mplug.grounding", "mplug", default=True),
        TaskRecipe("mplug.grounding_mixed", "mplug", teaches=()),
        TaskRecipe("mplug.grounding_second", "mplug", teaches=(), continues=True),
    ),
    serves=("ground",),
    evaluations=(
        Evaluation(
            "grounding",
            "box",
            _box_metrics,
            reads=("phrase",),
            kept=("box_xyxy",),
            forms=("refcoco",),
        ),
    ),
)
