"""Zero-shot classification by names: each class is the mean of many sentences about it.

Radford et al. 2021, section 3.1.4. FLAVA classifies in the same way. The sentences here are our
own; `load_templates` takes others from a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.core.errors import DataError
from triptych.core.outputs import MetricValue, Predictions
from triptych.core.reading import read_text
from triptych.evaluation.bootstrap import mean_value
from triptych.evaluation.label_metrics import MeanPerClassMetric
from triptych.evaluation.metrics import ByIndex, ClassificationMetric, reference_of

TOP = 5
PLACEHOLDER = "{}"

_VIEWS = (
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a snapshot of {}",
    "a view of {}",
    "a scene with {}",
    "a close look at {}",
    "{} seen from afar",
    "{} seen from above",
    "{} seen from one side",
    "{} in the middle of the image",
    "{} in one corner of the image",
    "a part of {}",
    "the whole of {}",
    "only {}",
    "{} and little else",
    "there is {} here",
    "this is {}",
    "here one can see {}",
    "what is shown is {}",
)
_SIZES = (
    "a small {}",
    "a large {}",
    "a tiny {}",
    "a huge {}",
    "a thin {}",
    "a wide {}",
    "a photo of one {}",
    "a photo of the {}",
    "a photo of some {}",
    "a photo of many {}",
)
_COLORS = (
    "a bright {}",
    "a dark {}",
    "a pale {}",
    "a colorful {}",
    "a plain {}",
    "a striped {}",
    "a grey photo of {}",
    "a black and white photo of {}",
    "a photo of {} in strong light",
    "a photo of {} in the shade",
)
_QUALITIES = (
    "a sharp photo of {}",
    "a blurry photo of {}",
    "a noisy photo of {}",
    "a grainy photo of {}",
    "a badly lit photo of {}",
    "a well lit photo of {}",
    "a photo of {} with few pixels",
    "a photo of {} with many details",
    "a damaged photo of {}",
    "a clean photo of {}",
    "a cropped photo of {}",
    "a tilted photo of {}",
    "a mirrored photo of {}",
    "a good photo of {}",
    "a poor photo of {}",
    "an old photo of {}",
    "a new photo of {}",
)
_STYLES = (
    "a drawing of {}",
    "a sketch of {}",
    "a painting of {}",
    "an oil painting of {}",
    "a cartoon of {}",
    "an icon of {}",
    "a sign with {}",
    "a stamp with {}",
    "a poster of {}",
    "a computer drawing of {}",
    "a 3d model of {}",
    "a toy in the shape of {}",
    "a paper cut of {}",
    "a sculpture of {}",
    "a stitched {}",
    "a shadow of {}",
)
_MOODS = (
    "a nice {}",
    "a strange {}",
    "a common {}",
    "a rare {}",
    "my {}",
    "somebody's {}",
    "a typical {}",
)

TEMPLATES: tuple[str, ...] = (*_VIEWS, *_SIZES, *_COLORS, *_QUALITIES, *_STYLES, *_MOODS)
"""Eighty sentences that vary view, size, colour, quality and style; `{}` is the class name."""


def load_templates(path: Path) -> tuple[str, ...]:
    """Read sentences from a text file, one a line; blank lines are skipped.

    Raises:
        DataError: The file cannot be read, is empty, or a line does not have `{}` exactly once.
    """
    lines = read_text(path).splitlines()
    found = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    for number, line in found:
        if line.count(PLACEHOLDER) != 1:
            raise DataError(
                f"{path}:{number}: {line!r} must hold {PLACEHOLDER} once, where the name goes"
            )
    if not found:
        raise DataError(f"{path}: holds no template, such as 'a photo of a {PLACEHOLDER}'")
    return tuple(line for _, line in found)


def class_words(label: str) -> str:
    """Return a class name as words: a folder called `red_circle` is "red circle"."""
    return " ".join(label.replace("_", " ").replace("-", " ").split())


def prompts(labels: Sequence[str], templates: Sequence[str] = TEMPLATES) -> list[list[str]]:
    """Return the sentences of each class, in the order of the templates."""
    words = [class_words(label) for label in labels]
    return [[template.replace(PLACEHOLDER, word) for template in templates] for word in words]


def class_embeddings(sentences: Tensor) -> Tensor:
    """Return one embedding a class: normalise, mean over sentences, normalise.

    Args:
        sentences: (C, T, E) embeddings of T sentences of each class.

    Returns:
        (C, E) float32 of length 1.
    """
    means = F.normalize(sentences.float(), dim=-1).mean(dim=1)
    return F.normalize(means, dim=-1)


def class_probabilities(images: Tensor, classes: Tensor, scale: float = 100.0) -> Tensor:
    """Return how likely each class is for each image.

    Args:
        images: (N, E) embeddings of images.
        classes: (C, E) embeddings of classes, of length 1.
        scale: What cosines are multiplied by before the softmax (CLIP, FLAVA: 100).

    Returns:
        (N, C) float32; rows sum to 1. The order of classes does not depend on the scale.
    """
    cosines = F.normalize(images.float(), dim=-1) @ classes.float().T
    return torch.softmax(scale * cosines, dim=1)


class ZeroShotMetric:
    """Accuracy as "zero_shot", of the first five classes, the mean over classes, then each class.

    Args:
        labels: The right classes by position.
        num_classes: How many classes the images are compared with; None if it is not known.
        num_sentences: How many sentences each class is the mean of.
    """

    name = "zero_shot"

    def __init__(
        self, labels: Mapping[int, str], num_classes: int | None, num_sentences: int = 0
    ) -> None:
        self._labels, self._num_classes = labels, num_classes
        self._best = ClassificationMetric(labels, self.name)
        self._per_class = MeanPerClassMetric(labels, self.name)
        self._first: ByIndex[Sequence[str]] = ByIndex(f"{self.name}_top5", len(labels))
        known = num_classes is not None
        words = f"Of {num_classes} classes, each the mean of {num_sentences} sentences. "
        self._words = words if known else ""

    def update(self, predictions: Predictions) -> None:
        """Take in the "label" of each sample, and its "top5" classes where there are more."""
        self._best.update(predictions)
        self._per_class.update(predictions)
        if "top5" in predictions.scores:
            self._first.add(predictions.index, predictions.scores["top5"])

    def compute(self) -> list[MetricValue]:
        """Return the numbers."""
        first, *rest = self._best.compute()
        values = [replace(first, protocol=f"{self._words}{first.protocol}")]
        if self._num_classes is not None and self._num_classes > TOP:
            hits = [
                float(reference_of(self._labels, position, self.name) in names)
                for position, names in self._first.items().items()
            ]
            words = f"{self._words}Share of images whose class is among the first five."
            values.append(mean_value("zero_shot_top5", hits, words))
        return [*values, *self._per_class.compute(), *rest]
