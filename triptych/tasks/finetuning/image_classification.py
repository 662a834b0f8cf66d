"""Classifiers of images alone, as VLMo and BEiT are fine-tuned on ImageNet.

The head reads the mean of the patch states, or the state of the image as a whole (FLAVA: [CLS_I]).
Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) blend a batch with itself in reverse order,
one share a batch, as timm does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.core.config import check
from triptych.core.outputs import Predictions
from triptych.data.collate.classification import (
    ClassPicker,
    ImageClassCollator,
    distinct_classes,
)
from triptych.data.records import Record
from triptych.evaluation.label_metrics import MeanPerClassMetric, TopKMetric
from triptych.evaluation.metrics import ClassificationMetric, Metric
from triptych.models.base import VisionLanguageModel
from triptych.objectives import IGNORE_INDEX
from triptych.tasks.finetuning.base import HeadConfig, ModelTask
from triptych.tasks.finetuning.image_text_classification import class_predictions
from triptych.tasks.spec import (
    Evaluation,
    TaskConfig,
    TaskRecipe,
    TaskSpec,
)
from triptych.train.chance import Chance

LINEAR_HEAD = HeadConfig(hidden_ratio=0.0)
NAME = "image_classification"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageClassificationConfig(TaskConfig):
    """Settings of a classifier of images. The defaults blend and smooth nothing.

    Attributes:
        labels: The classes, in the order of the scores; empty takes those of the training data.
        label_pattern: A regular expression whose first group in a label is the class; None takes
            the whole label.
        pooling: What the head reads: "mean", the normalised mean of the patch states (BEiT), or
            "class", the state of the image as a whole.
        label_smoothing: Share of the target that is spread over all classes (BEiT: 0.1).
        mixup: Parameter of the beta distribution of mixup's share (BEiT: 0.8); 0 disables it.
        cutmix: The same of CutMix's area (BEiT: 1). With both, each batch draws one of the two.
        head: The classifier (BEiT: one linear layer).
    """

    labels: tuple[str, ...] = ()
    label_pattern: str | None = None
    pooling: Literal["mean", "class"] = "mean"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    head: HeadConfig = field(default_factory=lambda: LINEAR_HEAD)

    def __post_init__(self) -> None:
        """Reject shares out of range."""
        smoothing = self.label_smoothing
        check(0 <= smoothing < 1, "label_smoothing", smoothing, "be in [0, 1)")
        check(self.mixup >= 0, "mixup", self.mixup, "be at least 0")
        check(self.cutmix >= 0, "cutmix", self.cutmix, "be at least 0")
        ClassPicker(self.label_pattern)

    def class_of(self, record: Record) -> str:
        """Return the class of a record with a label."""
        return ClassPicker(self.label_pattern)(str(record.label))


class ImageClassification(ModelTask[VisionLanguageModel]):
    """One class of several, by cross-entropy.

    Args:
        model: Any model with an image encoder.
        config: Its `labels` must not be empty.
    """

    batch_keys = frozenset({"image", "label"})
    objective_names = frozenset({"classification"})

    def __init__(self, model: VisionLanguageModel, config: ImageClassificationConfig) -> None:
        check(len(config.labels) > 1, "labels", config.labels, "name two classes or more")
        width = model.feature_dims.image
        head: nn.Module = config.head.build(width, len(config.labels))
        if config.pooling == "mean":
            head = nn.Sequential(nn.LayerNorm(width), head)
        super().__init__(model, head)
        self.config = config

    def image_scores(self, image: Tensor) -> Tensor:
        """Return (B, C) float32 scores of images (B, 3, S, S)."""
        features = self.model.encode_image(image)
        if self.config.pooling == "mean":
            return self.scores(features.tokens[:, 1:].mean(dim=1))
        return self.scores(features.pooled)

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"classification": mean cross-entropy}; in training images may be blended."""
        del active
        image, label = batch["image"], batch["label"]
        if not self.modules.training or not (self.config.mixup or self.config.cutmix):
            return {"classification": self._loss(self.image_scores(image), label)}
        image, share = blend(image, self.config.mixup, self.config.cutmix)
        scores = self.image_scores(image)
        own, other = self._loss(scores, label), self._loss(scores, label.flip(0))
        return {"classification": share * own + (1 - share) * other}

    def _loss(self, scores: Tensor, label: Tensor) -> Tensor:
        smoothing = self.config.label_smoothing
        total = F.cross_entropy(
            scores, label, ignore_index=IGNORE_INDEX, label_smoothing=smoothing, reduction="sum"
        )
        return total / (label != IGNORE_INDEX).sum().clamp(min=1)

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return the class of each image; reads `image` and `index`."""
        return class_predictions(batch, self.image_scores(batch["image"]), self.config.labels)


def blend(image: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, float]:
    """Blend images (B, 3, H, W) with those of the batch in reverse order.

    Draws from torch's random state on the CPU.

    Args:
        image: Pixels.
        mixup: Parameter of mixup's beta distribution; 0 where it is not used.
        cutmix: Parameter of CutMix's; 0 where it is not used.

    Returns:
        The images, and the share of each that is left of its own.
    """
    cuts = cutmix > 0 and (mixup == 0 or bool(torch.rand(()) < 0.5))
    alpha = torch.tensor(cutmix if cuts else mixup)
    share = float(torch.distributions.Beta(alpha, alpha).sample())  # type: ignore[no-untyped-call]
    others = image.flip(0)
    if not cuts:
        return share * image + (1 - share) * others, share
    height, width = image.shape[-2:]
    side = math.sqrt(1 - share)
    center = torch.rand(2).tolist()
    top, bottom = _cut(center[0], side, height)
    left, right = _cut(center[1], side, width)
    image = image.clone()
    image[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return image, 1 - (bottom - top) * (right - left) / (height * width)


def _cut(center: float, side: float, length: int) -> tuple[int, int]:
    """Return where a cut of a share of a length begins and ends, as far as it lies inside."""
    middle, half = int(center * length), int(side * length) // 2
    return max(middle - half, 0), min(middle + half, length)


def _metrics(
    config: ImageClassificationConfig, records: Sequence[Record], all_records: Sequence[Record]
) -> list[Metric]:
    del all_records
    truth = {position: config.class_of(record) for position, record in enumerate(records)}
    first: Metric = ClassificationMetric(truth, NAME, with_majority=True)
    per_class = MeanPerClassMetric(truth, NAME)
    if len(config.labels) <= 5:
        return [first, per_class]
    return [first, TopKMetric(truth, config.labels, NAME), per_class]


def _complete(
    config: ImageClassificationConfig, records: Sequence[Record]
) -> ImageClassificationConfig:
    if config.labels:
        return config
    labelled = (config.class_of(record) for record in records if record.label is not None)
    return replace(config, labels=distinct_classes(labelled))


SPEC = TaskSpec(
    config=ImageClassificationConfig,
    trained_for=NAME,
    build=lambda config, model, *_: ImageClassification(model, config),
    collator=lambda config, inputs: ImageClassCollator(
        config.labels, label_pattern=config.label_pattern, train=inputs.train
    ),
    needs=("image", "label"),
    recipes=(TaskRecipe("classify.images"),),
    serves=("classify",),
    evaluations=(
        Evaluation(NAME, "label", _metrics, kept=("label", "probabilities"), forms=("csv",)),
    ),
    tokenizer="optional",
    has_classifier=True,
    complete=_complete,
    chances=lambda config: {"classification": Chance(labels="label")},
)
