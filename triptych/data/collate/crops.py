"""Several crops of each image, large and small, for self-distillation (DINO, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from triptych.core.config import check
from triptych.core.errors import ConfigError
from triptych.data.records import Record
from triptych.data.transforms.geometry import Pixels
from triptych.data.transforms.pipeline import (
    ImageTransform,
    ImageTransformConfig,
    TransformedImage,
    normalise_batch,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiCropConfig:
    """How many crops, and how large. The defaults are DINO's for ViT-B/16.

    Attributes:
        num_large: Crops that the teacher sees too, at the model's image size.
        large_scale: Least and largest share of the area that they keep.
        num_small: Crops that the student alone sees.
        small_scale: Least and largest share of the area that they keep.
        small_size: Side of a small crop in pixels; a multiple of the patch size.
        flip_probability: Share of crops that are mirrored.
        num_color_ops: RandAugment ops of colour and sharpness on each crop. They stand for DINO's
            colour jitter, grey, blur and solarisation.
        color_magnitude: Their strength, 0 to 10.
    """

    num_large: int = 2
    large_scale: tuple[float, float] = (0.25, 1.0)
    num_small: int = 10
    small_scale: tuple[float, float] = (0.05, 0.25)
    small_size: int = 96
    flip_probability: float = 0.5
    num_color_ops: int = 2
    color_magnitude: float = 7.0

    def __post_init__(self) -> None:
        """Reject crops that leave no pair to compare."""
        check(self.num_large >= 1, "num_large", self.num_large, "be at least 1")
        check(self.num_small >= 0, "num_small", self.num_small, "be at least 0")
        enough = self.num_large + self.num_small >= 2
        check(enough, "num_small", self.num_small, "leave two crops or more in all")
        check(self.small_size >= 1, "small_size", self.small_size, "be at least 1")

    def transform(
        self, image: ImageTransformConfig, size: int, scale: tuple[float, float]
    ) -> ImageTransform:
        """Return what makes one crop of a side `size`, normalised as `image` says."""
        settings = ImageTransformConfig(
            image_size=size,
            crop_scale=scale,
            crop_ratio=image.crop_ratio,
            flip_probability=self.flip_probability,
            randaugment_num_ops=self.num_color_ops,
            randaugment_magnitude=self.color_magnitude,
            randaugment_geometric=False,
            mean=image.mean,
            std=image.std,
        )
        return ImageTransform(settings, train=True)


@dataclass(frozen=True, slots=True)
class CropSample:
    """The crops of one image, uint8."""

    large: tuple[Pixels, ...] = ()
    small: tuple[Pixels, ...] = field(default_factory=tuple)


class MultiCropCollator:
    """Crop each image several times.

    Args:
        image: Size and normalisation; must not crop, since crops are taken here.
        config: How many crops, and how large.
    """

    needs_boxes = False

    def __init__(self, image: ImageTransformConfig, config: MultiCropConfig) -> None:
        if image.crop_scale is not None:
            raise ConfigError(
                f"image.crop_scale = {image.crop_scale}: must be None where several crops are "
                "taken of the whole image (--crops)"
            )
        self.config, self.image = config, image
        self._large = config.transform(image, image.image_size, config.large_scale)
        self._small = config.transform(image, config.small_size, config.small_scale)

    def sample(
        self, record: Record, image: TransformedImage, rng: np.random.Generator
    ) -> CropSample:
        """Take the crops of one image."""
        del record
        whole = image.region
        assert whole is not None
        large = (self._large(whole, rng) for _ in range(self.config.num_large))
        small = (self._small(whole, rng) for _ in range(self.config.num_small))
        return CropSample(tuple(large), tuple(small))

    def batch(self, samples: Sequence[CropSample]) -> dict[str, Tensor]:
        """Join samples.

        Returns:
            `large_crops` (G, B, 3, S, S) and `small_crops` (C, B, 3, s, s) float32; C may be 0.
        """
        large = [crop for crops in zip(*(s.large for s in samples), strict=True) for crop in crops]
        small = [crop for crops in zip(*(s.small for s in samples), strict=True) for crop in crops]
        size = self.config.small_size
        return {
            "large_crops": self._join(large, len(samples)),
            "small_crops": self._join(small, len(samples))
            if small
            else torch.empty(0, len(samples), 3, size, size),
        }

    def _join(self, crops: list[Pixels], num_samples: int) -> Tensor:
        """Return crops, crop by crop, as (crops, B, 3, side, side)."""
        joined = normalise_batch(crops, self.image.mean, self.image.std)
        return joined.view(-1, num_samples, *joined.shape[1:])
