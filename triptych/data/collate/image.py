"""Batches of images alone: whole, with masked patches and the tokenizer's view, or in crops.

The encoder's view and the tokenizer's view come from the same crop, each resized on its own: one
code of the tokenizer stands for one patch of the encoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from triptych.core.config import check, check_range
from triptych.core.errors import ConfigError
from triptych.data.codes import CodeArray, read_codes
from triptych.data.collate.base import SampleProblem
from triptych.data.masking import BlockMaskingConfig, block_masks, draw_mask_key
from triptych.data.records import Record
from triptych.data.skips import SkipKind
from triptych.data.transforms.pipeline import (
    MAX_SIDE,
    ImageTransform,
    ImageTransformConfig,
    TransformedImage,
    mirror,
    normalise_batch,
    resize_lanczos,
)
from triptych.data.transforms.randaugment import Pixels

CODEBOOK_MEAN = (-0.125, -0.125, -0.125)
CODEBOOK_STD = (1.25, 1.25, 1.25)
"""x in [0, 1] becomes 0.8·x + 0.1: the range that a logit-Laplace tokenizer reads."""


class ImageCollator:
    """Images alone: the batch has `image` and `index`, which `build_loader` adds."""

    needs_boxes = False

    def sample(self, record: Record, image: TransformedImage, rng: np.random.Generator) -> None:
        """Return nothing: the image is all."""
        del record, image, rng

    def batch(self, samples: Sequence[None]) -> dict[str, Tensor]:
        """Return no tensor of its own."""
        del samples
        return {}


@dataclass(frozen=True, slots=True)
class MaskedImageSample:
    """What masked image modelling needs of one image beside the encoder's view.

    Attributes:
        mask_key: Decides which patches are hidden.
        codebook_pixels: (s, s, 3) uint8, the tokenizer's view; None where codes are stored.
        codes: (P,) stored codes; None where the tokenizer runs in training.
    """

    mask_key: int
    codebook_pixels: Pixels | None
    codes: CodeArray | None


class MaskedImageCollator:
    """Masks patches and prepares their targets. Collators of pairs use one beside their texts.

    Args:
        transform: How images are prepared. Geometric RandAugment is an error: it would move the
            encoder's view against the tokenizer's. RandAugment of colours changes the encoder's
            view only (BEiT's colour jitter changes both).
        patch_size: Side of a patch of the encoder, in pixels.
        codebook_size: Side in pixels of the tokenizer's view; None reads stored codes, for which
            images must be neither cropped nor mirrored.
        masking: How many patches are hidden, and how.
    """

    needs_boxes = False

    def __init__(
        self,
        transform: ImageTransformConfig,
        *,
        patch_size: int,
        codebook_size: int | None,
        masking: BlockMaskingConfig | None = None,
    ) -> None:
        size = transform.image_size
        fits = patch_size >= 1 and size % patch_size == 0
        check(fits, "image_size", size, f"be a multiple of patch_size {patch_size}")
        self.grid_size = size // patch_size
        self.codebook_size = codebook_size
        self.masking = masking or BlockMaskingConfig()
        if transform.randaugment_num_ops and transform.randaugment_geometric:
            raise ConfigError(
                "randaugment_geometric = True: must be off with masked image modelling, whose "
                "targets come from an unmoved view"
            )
        if codebook_size is None:
            fixed = transform.crop_scale is None and transform.flip_probability == 0
            check(
                fixed,
                "crop_scale, flip_probability",
                (transform.crop_scale, transform.flip_probability),
                "be None and 0 with stored codes, which are those of whole images",
            )

    @property
    def region_side(self) -> int:
        """Side of the tokenizer's view."""
        return self.codebook_size or 1

    def sample(
        self, record: Record, image: TransformedImage, rng: np.random.Generator
    ) -> MaskedImageSample:
        """Draw the mask's key, and make the tokenizer's view or read the codes.

        Raises:
            SampleProblem: Codes are read but the record has none.
        """
        key = draw_mask_key(rng)
        if self.codebook_size is not None:
            return MaskedImageSample(key, codebook_view(image, self.codebook_size), None)
        if record.codes is None:
            message = f"record {record.record_id}: has no stored codes"
            raise SampleProblem(SkipKind.MISSING_FIELD, message)
        return MaskedImageSample(key, None, read_codes(record.codes, self.grid_size**2))

    def batch(self, samples: Sequence[MaskedImageSample]) -> dict[str, Tensor]:
        """Join samples.

        Returns:
            `hidden_patches` (B, P) bool, True = hidden; and `codebook_image` (B, 3, s, s) float32
            in [0.1, 0.9], or `image_codes` (B, P) int64.
        """
        keys = np.array([sample.mask_key for sample in samples], dtype=np.uint64)
        hidden = block_masks(keys, self.grid_size, self.masking)
        batch = {"hidden_patches": torch.from_numpy(hidden)}
        codes = [sample.codes for sample in samples if sample.codes is not None]
        if codes:
            batch["image_codes"] = torch.from_numpy(np.stack(codes))
            return batch
        pixels = [s.codebook_pixels for s in samples if s.codebook_pixels is not None]
        batch["codebook_image"] = normalise_batch(pixels, CODEBOOK_MEAN, CODEBOOK_STD)
        return batch


def codebook_view(image: TransformedImage, size: int) -> Pixels:
    """Return the tokenizer's view of the same crop, (size, size, 3) uint8."""
    assert image.region is not None
    pixels = resize_lanczos(image.region, size, size)
    return mirror(pixels) if image.flipped else pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiCropConfig:
    """How many crops, and how large. The defaults are DINO's for ViT-B/16.

    Attributes:
        num_large: Crops at the model's image size, which the teacher sees too.
        large_scale: Smallest and largest share of the image area that they keep.
        num_small: Crops that only the student sees.
        small_scale: Smallest and largest share of the image area that they keep.
        small_size: Side of a small crop in pixels; a multiple of the patch size.
        flip_probability: Probability of mirroring a crop.
        num_color_ops: RandAugment colour and sharpness operations per crop, in place of DINO's
            colour jitter, greyscale, blur and solarisation.
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
        check_range("num_large", self.num_large, 1, 1000)
        check_range("num_small", self.num_small, 0, 1000)
        enough = self.num_large + self.num_small >= 2
        check(enough, "num_small", self.num_small, "leave two crops or more in all")
        check_range("small_size", self.small_size, 1, MAX_SIDE)

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
            decoding=image.decoding,
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

    @property
    def region_side(self) -> int:
        """Shorter side of an image whose smallest and narrowest crops have their sizes' sides."""
        config, narrowest = self.config, min(self.image.crop_ratio[0], 1 / self.image.crop_ratio[1])
        crops = [(self.image.image_size, config.large_scale[0])]
        crops += [(config.small_size, config.small_scale[0])] * (config.num_small > 0)
        return 1 + max(math.ceil(size / math.sqrt(low * narrowest)) for size, low in crops)

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
