"""From a decoded image to the model's input: crop or resize, mirror, RandAugment, normalise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from triptych.core.config import check
from triptych.data.transforms.geometry import (
    Pixels,
    Region,
    crop,
    draw_crop,
    mirror,
    mirror_box,
    relative_box,
    resize,
    resize_fast,
)
from triptych.data.transforms.randaugment import ALL_OPS, MAX_LEVEL, PHOTOMETRIC_OPS, rand_augment

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Triple = tuple[float, float, float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTransformConfig:
    """How images are prepared; stored in a model folder's `preprocess.json`.

    Evaluation resizes to the square and normalises; the other fields are training's.

    Attributes:
        image_size: Side of the square input in pixels; the aspect is not kept.
        crop_scale: Least and largest share of the area that a random crop keeps (mPLUG's
            pre-training: 0.2 to 1, its fine-tuning: 0.5 to 1); None resizes the whole image.
        crop_ratio: Least and largest width / height of a crop, before it becomes square.
        flip_probability: Share of images that are mirrored, where the text names no side.
        randaugment_num_ops: Ops drawn for each image; 0 is no RandAugment (mPLUG: 2).
        randaugment_magnitude: Strength, 0 to 10 (mPLUG: 7).
        randaugment_geometric: Whether shear, shift and rotation are among the ops.
        mean: Mean of each channel, for values in [0, 1] (CLIP's, as mPLUG).
        std: Standard deviation of each channel, for values in [0, 1] (CLIP's, as mPLUG).
    """

    image_size: int = 256
    crop_scale: tuple[float, float] | None = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    randaugment_num_ops: int = 2
    randaugment_magnitude: float = 7.0
    randaugment_geometric: bool = True
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD

    def __post_init__(self) -> None:
        """Reject values out of range."""
        check(self.image_size >= 1, "image_size", self.image_size, "be at least 1")
        if self.crop_scale is not None:
            low, high = self.crop_scale
            check(0 < low <= high <= 1, "crop_scale", self.crop_scale, "rise within (0, 1]")
        low, high = self.crop_ratio
        check(0 < low <= high, "crop_ratio", self.crop_ratio, "rise and be above 0")
        flip = self.flip_probability
        check(0 <= flip <= 1, "flip_probability", flip, "be from 0 to 1")
        num_ops, level = self.randaugment_num_ops, self.randaugment_magnitude
        check(num_ops >= 0, "randaugment_num_ops", num_ops, "be at least 0")
        check(0 <= level <= MAX_LEVEL, "randaugment_magnitude", level, f"be from 0 to {MAX_LEVEL}")
        check(min(self.std) > 0, "std", self.std, "be above 0")

    @property
    def keeps_boxes(self) -> bool:
        """Whether a box can follow the training transform: no crop, no geometric RandAugment."""
        moved = self.randaugment_num_ops > 0 and self.randaugment_geometric
        return self.crop_scale is None and not moved


@dataclass(frozen=True, slots=True)
class TransformedImage:
    """An image after the transform, and what happened to it.

    Attributes:
        pixels: (S, S, 3) uint8, S the image size.
        width: Width of the original in pixels.
        height: Height of the original in pixels.
        flipped: Whether it was mirrored.
        region: (h, w, 3) uint8, the part of the original that was resized, before mirroring and
            RandAugment: what a second view of the same crop is made from.
    """

    pixels: Pixels
    width: int
    height: int
    flipped: bool = False
    region: Pixels | None = None

    def box_cxcywh(self, box: Box) -> Box:
        """Return a box of the original (x, y, w, h in pixels) in this image.

        Holds for transforms that keep boxes. The part of the box outside the image is cut off.

        Returns:
            Centre x, centre y, width, height in [0, 1].
        """
        upright = mirror_box(box, self.width) if self.flipped else box
        return relative_box(upright, self.width, self.height)


class ImageTransform:
    """Turn a decoded image into a square uint8 image of the model's size.

    Attributes:
        config: The settings.
        train: Whether to augment.
    """

    def __init__(self, config: ImageTransformConfig, *, train: bool) -> None:
        """Keep the settings; `train` False resizes only."""
        self.config = config
        self.train = train
        self._ops = ALL_OPS if config.randaugment_geometric else PHOTOMETRIC_OPS

    def __call__(
        self, pixels: Pixels, rng: np.random.Generator | None = None, *, allow_flip: bool = True
    ) -> Pixels:
        """Return only the pixels of `apply`."""
        return self.apply(pixels, rng, allow_flip=allow_flip).pixels

    def apply(
        self, pixels: Pixels, rng: np.random.Generator | None = None, *, allow_flip: bool = True
    ) -> TransformedImage:
        """Transform one image.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            rng: Source of all choices; needed for training only.
            allow_flip: False where the text says left or right. All other choices stay the same.
        """
        height, width = pixels.shape[:2]
        config, size = self.config, self.config.image_size
        if not self.train:
            return TransformedImage(resize(pixels, size, size), width, height, region=pixels)
        assert rng is not None, "training draws from a generator"
        original = pixels
        if config.crop_scale is not None:
            region: Region = draw_crop(width, height, config.crop_scale, config.crop_ratio, rng)
            original = crop(original, region)
        pixels = resize_fast(original, size, size)
        flipped = bool(rng.random() < config.flip_probability) and allow_flip
        if flipped:
            pixels = mirror(pixels)
        num_ops, magnitude = config.randaugment_num_ops, config.randaugment_magnitude
        pixels = rand_augment(pixels, rng, num_ops=num_ops, magnitude=magnitude, ops=self._ops)
        return TransformedImage(pixels, width, height, flipped, original)


def normalise_batch(
    images: Sequence[Pixels], mean: Triple = CLIP_MEAN, std: Triple = CLIP_STD
) -> Tensor:
    """Return (x / 255 - mean) / std of images of one size.

    Args:
        images: B images (H, W, 3) uint8.
        mean: Mean of each channel.
        std: Standard deviation of each channel.

    Returns:
        (B, 3, H, W) float32, contiguous.
    """
    height, width, _ = images[0].shape
    planes = np.empty((len(images), 3, height, width), dtype=np.uint8)
    for image, (red, green, blue) in zip(images, planes, strict=True):
        cv2.split(image, [red, green, blue])  # writes into them; twice as fast as a transpose
    batch = torch.from_numpy(planes).to(torch.float32)
    scale = torch.tensor([1 / (255 * s) for s in std]).view(3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std)]).view(3, 1, 1)
    return batch.mul_(scale).add_(shift)
