"""Semantic segmentation with the model as image encoder (VLMo on ADE20K, as BEiT).

A head on the patch states scores each class at each place; the scores are enlarged to the image.
BEiT's UPerNet reads four layers; this one makes its pyramid of the last states, which every model
has, and has no second head on a middle layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.core.config import check
from triptych.core.errors import ConfigError
from triptych.core.outputs import Predictions
from triptych.data.collate.segmentation import SegmentationCollator
from triptych.data.masks import IGNORED, ClassMap, MaskClasses, decode_mask, find_classes
from triptych.data.records import ImageSource, Record
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.evaluation.metrics import Metric
from triptych.evaluation.segmentation import SegmentationMetric
from triptych.models.base import VisionLanguageModel
from triptych.nn.segmentation import NORM_GROUPS, LinearSegmentation, PyramidSegmentation
from triptych.tasks.finetuning.base import ModelTask
from triptych.tasks.spec import Evaluation, TaskConfig, TaskRecipe, TaskSpec, at_model_size

PIXELS_AT_ONCE = 1 << 25
"""Scores of classes at pixels that are held at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentationConfig(TaskConfig):
    """Settings of semantic segmentation.

    Attributes:
        classes: The classes, in the order of their numbers; empty takes those of the training data:
            the names in `objectInfo150.txt` or `classes.txt` beside the masks, or the numbers that
            occur.
        zero_is_ignored: Whether value 0 of a mask is ignored and class k has the value k + 1, as
            in ADE20K; found with the names. Value 255 is always ignored.
        head: "linear" scores each patch; "upernet" is a pyramid of convolutions.
        channels: Width of the pyramid (BEiT: that of the model).
        dropout: Share of the pyramid's channels that training drops (mmsegmentation: 0.1).
    """

    classes: tuple[str, ...] = ()
    zero_is_ignored: bool = False
    head: Literal["linear", "upernet"] = "upernet"
    channels: int = 512
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Reject sizes out of range."""
        fits = self.channels >= NORM_GROUPS and self.channels % NORM_GROUPS == 0
        check(fits, "channels", self.channels, f"be a multiple of {NORM_GROUPS}")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "be in [0, 1)")
        check(len(self.classes) <= IGNORED, "classes", len(self.classes), f"be {IGNORED} at most")

    def mask_classes(self) -> MaskClasses:
        """Return what the values of masks mean."""
        return MaskClasses(self.classes, self.zero_is_ignored)

    def build_head(self, embed_dim: int) -> nn.Module:
        """Return the head with random weights."""
        if self.head == "linear":
            return LinearSegmentation(embed_dim, len(self.classes))
        return PyramidSegmentation(
            embed_dim, len(self.classes), channels=self.channels, dropout=self.dropout
        )


class Segmentation(ModelTask[VisionLanguageModel]):
    """The class of each pixel, by cross-entropy.

    Args:
        model: Any model whose image states are [CLS] and then the patches of a square grid.
        config: Its `classes` must not be empty.
    """

    batch_keys = frozenset({"image", "mask"})
    objective_names = frozenset({"segmentation"})

    def __init__(self, model: VisionLanguageModel, config: SegmentationConfig) -> None:
        check(len(config.classes) > 1, "classes", config.classes, "name two classes or more")
        super().__init__(model, config.build_head(model.feature_dims.image))
        self.config = config

    def map_scores(self, image: Tensor) -> Tensor:
        """Return (B, C, g, g) float32 scores of images (B, 3, S, S), on a grid coarser than S."""
        return self.scores(self.model.encode_image(image).tokens[:, 1:])

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"segmentation": mean cross-entropy of pixels that count; 0 if none does}."""
        del active
        mask = batch["mask"]
        scores = enlarged(self.map_scores(batch["image"]), *mask.shape[1:])
        total = F.cross_entropy(scores, mask, ignore_index=IGNORED, reduction="sum")
        return {"segmentation": total / (mask != IGNORED).sum().clamp(min=1)}

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return the class numbers (H, W) uint8 of each image, at its own size, as `mask`.

        Reads `image`, `image_size_px` and `index`.
        """
        scores = self.map_scores(batch["image"])
        masks: list[NDArray[np.uint8]] = []
        for row, (width, height) in zip(scores, batch["image_size_px"].tolist(), strict=True):
            masks.append(best_classes(row, height, width).cpu().numpy())
        return Predictions(index=batch["index"].tolist(), scores={"mask": masks})


def enlarged(scores: Tensor, height: int, width: int) -> Tensor:
    """Return scores (B, C, g, g) at (B, C, height, width), interpolated linearly."""
    return F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)


def best_classes(scores: Tensor, height: int, width: int) -> Tensor:
    """Return the best class (height, width) uint8 of scores (C, g, g); of equal ones the first.

    A few classes at a time: all scores of a large photo would take gigabytes.
    """
    at_once = max(1, PIXELS_AT_ONCE // (height * width))
    best, highest = None, None
    for first in range(0, len(scores), at_once):
        part = enlarged(scores[None, first : first + at_once], height, width)[0]
        high, number = part.max(dim=0)
        number += first
        if best is None or highest is None:
            best, highest = number, high
        else:
            is_better = high > highest
            best = torch.where(is_better, number, best)
            highest = torch.maximum(highest, high)
    assert best is not None, "there are two classes or more"
    return best.to(torch.uint8)


def _image(image: ImageTransformConfig, model: VisionLanguageModel) -> ImageTransformConfig:
    if not image.keeps_masks:
        raise ConfigError(
            "image.randaugment_geometric = true: masks cannot follow shears and rotations; set it "
            "to false"
        )
    return at_model_size(image, model)


def _truth(classes: MaskClasses, source: ImageSource) -> ClassMap:
    return classes.numbers(decode_mask(source), source)


def _metrics(
    config: SegmentationConfig, records: Sequence[Record], all_records: Sequence[Record]
) -> list[Metric]:
    del all_records
    classes = config.mask_classes()
    truths = {
        position: partial(_truth, classes, record.mask)
        for position, record in enumerate(records)
        if record.mask is not None
    }
    return [SegmentationMetric(truths, config.classes, ignored=IGNORED)]


def _complete(config: SegmentationConfig, records: Sequence[Record]) -> SegmentationConfig:
    if config.classes:
        return config
    found = find_classes(records)
    return replace(config, classes=found.names, zero_is_ignored=found.zero_is_ignored)


SPEC = TaskSpec(
    config=SegmentationConfig,
    trained_for="segmentation",
    build=lambda config, model, *_: Segmentation(model, config),
    collator=lambda config, inputs: SegmentationCollator(config.mask_classes(), train=inputs.train),
    needs=("image", "mask"),
    recipes=(
        TaskRecipe("vlmo.segmentation", "vlmo"),
        TaskRecipe("segment.images", default=True),
    ),
    serves=("segment",),
    evaluations=(Evaluation("segmentation", "mask", _metrics),),
    tokenizer="optional",
    has_classifier=True,
    complete=_complete,
    image=_image,
)
