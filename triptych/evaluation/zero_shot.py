"""Zero-shot classification by names: each class is the mean of many sentences about it.

Radford et al. 2021, section 3.1.4. FLAVA classifies in the same way. The sentences here are our
own; `load_templates` takes others from a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.core.errors import DataError

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
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the templates {path}: {error}") from error
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
