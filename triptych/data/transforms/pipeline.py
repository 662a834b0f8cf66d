"""From a decoded image to the model's input: crop or resize, mirror, RandAugment, normalise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from triptych.core.config import check, check_range
from triptych.data.transforms.randaugment import (
    ALL_OPS,
    MAX_LEVEL,
    PHOTOMETRIC_OPS,
    Pixels,
    rand_augment,
)

NUM_CROP_TRIES = 10

Shrink = Literal["bicubic", "area"]
Decoding = Literal["reduced", "whole"]
FACTORS = (8, 4, 2)
"""By what a JPEG can be divided while it is decoded."""

MAX_SIDE = 8192  # of what a model sees, in pixels


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of an image, in whole pixels.

    Attributes:
        left: First column.
        top: First row.
        width: Columns, at least 1.
        height: Rows, at least 1.
    """

    left: int
    top: int
    width: int
    height: int


def resize(pixels: Pixels, width: int, height: int) -> Pixels:
    """Resize as the released test transforms do: Pillow's bicubic, antialiased where it shrinks.

    Args:
        pixels: (H, W, 3) uint8.
        width: New width in pixels; the aspect is not kept.
        height: New height in pixels.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    found = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(found)


def resize_lanczos(pixels: Pixels, width: int, height: int) -> Pixels:
    """Resize with Pillow's Lanczos filter, as image tokenizers are fed in BEiT and FLAVA.

    Args:
        pixels: (H, W, 3) uint8.
        width: New width in pixels.
        height: New height in pixels.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    found = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(found)


def resize_fast(pixels: Pixels, width: int, height: int, shrink: Shrink = "bicubic") -> Pixels:
    """Resize for training, 2 to 7 times faster than `resize`.

    Each axis is enlarged bicubically (OpenCV's kernel, a = -0.75, where Pillow has -0.5) or shrunk
    so that nothing aliases. The shrinking axis comes first.

    Args:
        pixels: (H, W, 3) uint8.
        width: New width in pixels.
        height: New height in pixels.
        shrink: How: "bicubic" as `resize` does, within two grey levels, since torch's weights have
            fewer bits; or "area", the mean of what a pixel covers.
    """
    old_height, old_width = pixels.shape[:2]
    shrunk = (min(width, old_width), min(height, old_height))
    if shrunk != (old_width, old_height):
        by = _shrink_bicubic if shrink == "bicubic" else _shrink_area
        pixels = by(pixels, *shrunk)
    if shrunk != (width, height):
        found = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
        pixels = np.asarray(found, dtype=np.uint8)
    return pixels


def _shrink_bicubic(pixels: Pixels, width: int, height: int) -> Pixels:
    """Return what Pillow would, by torch's loop over the three colours of uint8 pixels.

    The layout must say "channels last" to get that loop, so the batch of one is made before the
    channels move.
    """
    given = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
    planes = given[None].permute(0, 3, 1, 2)
    small = F.interpolate(planes, (height, width), mode="bicubic", antialias=True)
    return np.ascontiguousarray(small[0].permute(1, 2, 0).numpy())


def _shrink_area(pixels: Pixels, width: int, height: int) -> Pixels:
    found = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(found, dtype=np.uint8)


def draw_crop(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Region:
    """Draw the region of a random resized crop (Szegedy et al. 2015, section 6).

    The area share is uniform in `scale`, the logarithm of width / height uniform in `ratio`'s, the
    place uniform. After ten regions that do not fit, the largest central region whose aspect is in
    `ratio` is taken.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        scale: Least and largest share of the area, 0 to 1.
        ratio: Least and largest width / height.
        rng: Source of the choice.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for share, aspect_draw, x, y in rng.random((NUM_CROP_TRIES, 4)).tolist():
        area = width * height * (scale[0] + share * (scale[1] - scale[0]))
        aspect = math.exp(low + aspect_draw * (high - low))
        new_width, new_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < new_width <= width and 0 < new_height <= height:
            left = int(x * (width - new_width + 1))
            top = int(y * (height - new_height + 1))
            return Region(left, top, new_width, new_height)
    return _central_region(width, height, ratio)


def _central_region(width: int, height: int, ratio: tuple[float, float]) -> Region:
    aspect = min(max(width / height, ratio[0]), ratio[1])
    new_width = max(1, min(width, round(height * aspect)))
    new_height = max(1, min(height, round(width / aspect)))
    return Region((width - new_width) // 2, (height - new_height) // 2, new_width, new_height)


def crop(pixels: Pixels, region: Region) -> Pixels:
    """Return a view of a region."""
    bottom, right = region.top + region.height, region.left + region.width
    return pixels[region.top : bottom, region.left : right]


def mirror(pixels: Pixels) -> Pixels:
    """Return the image with left and right exchanged."""
    return np.asarray(cv2.flip(pixels, 1), dtype=np.uint8)


def mirror_box(
    box: tuple[float, float, float, float], width: float
) -> tuple[float, float, float, float]:
    """Return a box x, y, w, h of an image `width` wide after `mirror`, in the same unit."""
    x, y, w, h = box
    return (width - x - w, y, w, h)


def relative_box(
    box: tuple[float, float, float, float], width: float, height: float
) -> tuple[float, float, float, float]:
    """Return the part of a box x, y, w, h in pixels that lies in its image, in shares of it.

    Returns:
        Centre x, centre y, width, height in [0, 1]; a side of 0 where the box lies outside.
    """
    x, y, w, h = box
    left, right = (min(max(v / width, 0.0), 1.0) for v in (x, x + w))
    top, bottom = (min(max(v / height, 0.0), 1.0) for v in (y, y + h))
    return ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Triple = tuple[float, float, float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTransformConfig:
    """How images are prepared; stored in a model folder's `preprocess.json`.

    Evaluation resizes to the square and normalises; the other fields are training's.

    Attributes:
        image_size: Side of the square input in pixels; the aspect ratio is not kept.
        crop_scale: Smallest and largest share of the image area that a random crop keeps (mPLUG's
            pre-training: 0.2 to 1, its fine-tuning: 0.5 to 1); None resizes the whole image.
        crop_ratio: Smallest and largest width / height of a crop, before it becomes square.
        flip_probability: Probability of mirroring an image whose text does not say left or right.
        randaugment_num_ops: Operations drawn for each image; 0 disables RandAugment (mPLUG: 2).
        randaugment_magnitude: Strength, 0 to 10 (mPLUG: 7).
        randaugment_geometric: Whether shear, shift and rotation are among the operations.
        mean: Mean of each channel, for values in [0, 1] (CLIP's, as in mPLUG).
        std: Standard deviation of each channel, for values in [0, 1] (CLIP's, as in mPLUG).
        num_frames: Frames that are taken of a clip, evenly spread (mPLUG's zero-shot transfer: 12
            in retrieval, 16 for questions, 8 for captions).
        decoding: How training gets from a large image to a small one. "reduced" decodes a JPEG at a
            half, a quarter or an eighth of its size where the crop stays at least as large as the
            input, and shrinks bicubically, as evaluation does. "whole" decodes every pixel and
            takes means of areas: what runs did whose config has no such field.
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
    num_frames: int = 8
    decoding: Decoding = "reduced"

    @staticmethod
    def upgrade_fields(plain: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a file that may be older than `decoding`, as they were meant.

        The config of a run and the file of `triptych init` name every field: where `decoding`
        alone is absent, the run began without it, and goes on as it began.
        """
        others = {field.name for field in fields(ImageTransformConfig)} - {"decoding"}
        is_older = "decoding" not in plain and others <= plain.keys()
        return {**plain, "decoding": "whole"} if is_older else dict(plain)

    def __post_init__(self) -> None:
        """Reject values out of range."""
        check_range("image_size", self.image_size, 1, MAX_SIDE)
        if self.crop_scale is not None:
            low, high = self.crop_scale
            check(0 < low <= high <= 1, "crop_scale", self.crop_scale, "rise within (0, 1]")
        low, high = self.crop_ratio
        check(0 < low <= high, "crop_ratio", self.crop_ratio, "rise and be above 0")
        flip = self.flip_probability
        check(0 <= flip <= 1, "flip_probability", flip, "be from 0 to 1")
        num_ops, level = self.randaugment_num_ops, self.randaugment_magnitude
        check_range("randaugment_num_ops", num_ops, 0, 100)
        check(0 <= level <= MAX_LEVEL, "randaugment_magnitude", level, f"be from 0 to {MAX_LEVEL}")
        check(all(map(math.isfinite, self.mean)), "mean", self.mean, "hold finite numbers")
        check(all(0 < value < math.inf for value in self.std), "std", self.std, "be above 0")
        check_range("num_frames", self.num_frames, 1, 1024)

    @property
    def keeps_boxes(self) -> bool:
        """Whether a box can follow the training transform: no crop, no geometric RandAugment."""
        moved = self.randaugment_num_ops > 0 and self.randaugment_geometric
        return self.crop_scale is None and not moved

    @property
    def keeps_masks(self) -> bool:
        """Whether a mask can follow the training transform: no geometric RandAugment."""
        return self.randaugment_num_ops == 0 or not self.randaugment_geometric


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
        place: Where `region` lies in the original; None where it is all of it.
    """

    pixels: Pixels
    width: int
    height: int
    flipped: bool = False
    region: Pixels | None = None
    place: Region | None = None

    def mask(self, classes: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
        """Return the classes (H, W) of the original's pixels as those of this image: (S, S).

        They are cropped, resized to the nearest pixel centre and mirrored as the image was. Holds
        for transforms that keep masks.
        """
        if self.place is not None:
            bottom, right = self.place.top + self.place.height, self.place.left + self.place.width
            classes = classes[self.place.top : bottom, self.place.left : right]
        side = self.pixels.shape[0]
        rows, columns = (
            ((np.arange(side) + 0.5) * length / side).astype(np.intp) for length in classes.shape
        )
        moved = classes[np.ix_(rows, columns)]
        return moved[:, ::-1] if self.flipped else moved

    def box_cxcywh(self, box: Box) -> Box:
        """Return a box of the original (x, y, w, h in pixels) in this image.

        Holds for transforms that keep boxes. The part of the box outside the image is cut off.

        Returns:
            Centre x, centre y, width, height in [0, 1].
        """
        upright = mirror_box(box, self.width) if self.flipped else box
        return relative_box(upright, self.width, self.height)


@dataclass(frozen=True, slots=True)
class Planned:
    """What was decided before an image was decoded.

    Attributes:
        width: Of the whole upright image.
        height: Of the whole upright image.
        factor: By what its sides were divided.
        place: The crop, in the whole image; None takes all of it.
    """

    width: int
    height: int
    factor: int
    place: Region | None

    def whole_region(self, region: Region) -> Region:
        """Return what a region of the divided image shows of the whole one."""
        left, top = region.left * self.factor, region.top * self.factor
        width = min(region.width * self.factor, self.width - left)
        return Region(left, top, width, min(region.height * self.factor, self.height - top))


class CropPlan:
    """The crop of one image, drawn when its size is first known, and what that needs of a JPEG.

    Attributes:
        place: Where the crop lies in the whole upright image; None until it is drawn, and where
            the whole image is taken.
    """

    def __init__(
        self, config: ImageTransformConfig, rng: np.random.Generator, least_side: int
    ) -> None:
        """Draw from a generator once; `least_side` is what the crop's sides may not go below."""
        self.place: Region | None = None
        self._config, self._rng, self._least_side = config, rng, least_side
        self._is_drawn = False

    def draw(self, width: int, height: int) -> Region | None:
        """Return the crop of an image of this size, the same each time."""
        config = self._config
        if not self._is_drawn and config.crop_scale is not None:
            self.place = draw_crop(width, height, config.crop_scale, config.crop_ratio, self._rng)
        self._is_drawn = True
        return self.place

    def factor(self, width: int, height: int) -> int:
        """Return by what a JPEG of this size may be divided: the crop stays large enough."""
        place = self.draw(width, height)
        if place is not None:
            width, height = place.width, place.height
        side = min(width, height)
        return next((f for f in FACTORS if side >= f * self._least_side), 1)


def reduced_region(region: Region, factor: int) -> Region:
    """Return where a region lies in an image whose sides were divided, to the nearest pixel there.

    Its sides are at least those of the region divided by the factor, rounded down.
    """
    left, right, top, bottom = (
        (2 * edge + factor) // (2 * factor)  # halves are rounded up: lengths never lose a pixel
        for edge in (
            region.left,
            region.left + region.width,
            region.top,
            region.top + region.height,
        )
    )
    return Region(left, top, right - left, bottom - top)


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

    def plan(self, rng: np.random.Generator, least_side: int = 1) -> CropPlan | None:
        """Return how an image is cropped before it is decoded; None where it is decoded whole.

        Args:
            rng: Source of the crop, and then of all other choices, which `apply` draws.
            least_side: Least side of the crop in pixels beside the image size, as other views need.
        """
        if not self.train or self.config.decoding == "whole":
            return None
        return CropPlan(self.config, rng, max(least_side, self.config.image_size))

    def apply(
        self,
        pixels: Pixels,
        rng: np.random.Generator | None = None,
        *,
        allow_flip: bool = True,
        planned: Planned | None = None,
    ) -> TransformedImage:
        """Transform one image.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            rng: Source of all choices; needed for training only.
            allow_flip: False where the text says left or right. All other choices stay the same.
            planned: The crop that was drawn before the image was decoded, perhaps at a reduced
                size; None draws one here.
        """
        height, width = pixels.shape[:2]
        config, size = self.config, self.config.image_size
        if not self.train:
            return TransformedImage(resize(pixels, size, size), width, height, region=pixels)
        assert rng is not None, "training draws from a generator"
        if planned is None:
            place = CropPlan(config, rng, size).draw(width, height)
            planned = Planned(width, height, 1, place)
        original, place = pixels, planned.place
        if place is not None:
            region = reduced_region(place, planned.factor)
            original, place = crop(pixels, region), planned.whole_region(region)
        shrink: Shrink = "area" if config.decoding == "whole" else "bicubic"
        pixels = resize_fast(original, size, size, shrink)
        flipped = bool(rng.random() < config.flip_probability) and allow_flip
        if flipped:
            pixels = mirror(pixels)
        num_ops, magnitude = config.randaugment_num_ops, config.randaugment_magnitude
        pixels = rand_augment(pixels, rng, num_ops=num_ops, magnitude=magnitude, ops=self._ops)
        return TransformedImage(pixels, planned.width, planned.height, flipped, original, place)

    def apply_alike(
        self,
        frames: Iterable[Pixels],
        rng: np.random.Generator,
        *,
        allow_flip: bool = True,
    ) -> list[TransformedImage]:
        """Transform the frames of a clip, all by the same choices.

        Args:
            frames: Images (H, W, 3) uint8 RGB of one size.
            rng: Source of all choices; moves on as for one image.
            allow_flip: As in `apply`.
        """
        start = rng.bit_generator.state
        found = []
        for frame in frames:
            rng.bit_generator.state = start
            found.append(self.apply(frame, rng, allow_flip=allow_flip))
        return found


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
    batch = _batch_memory((len(images), 3, height, width))
    tables = _normalised_levels(mean, std)
    planes = [np.empty((height, width), dtype=np.uint8) for _ in range(3)]
    for image, targets in zip(images, batch.numpy(), strict=True):
        cv2.split(image, planes)  # twice as fast as a transpose
        for plane, table, target in zip(planes, tables, targets, strict=True):
            cv2.LUT(plane, table, target)  # writes into the batch
    return batch


def _normalised_levels(mean: Triple, std: Triple) -> NDArray[np.float32]:
    """Return what becomes of 0 to 255 in each channel: (3, 256)."""
    levels = torch.arange(256, dtype=torch.float32)
    scale = torch.tensor([1 / (255 * s) for s in std])[:, None]
    shift = torch.tensor([-m / s for m, s in zip(mean, std)])[:, None]
    return np.asarray((levels * scale).add_(shift).numpy(), dtype=np.float32)


def _batch_memory(shape: tuple[int, ...]) -> Tensor:
    """Return room for a batch: in a worker, where the main process reads it without a copy."""
    if get_worker_info() is None:
        return torch.empty(shape)
    new_shared: Any = torch.UntypedStorage._new_shared  # where `default_collate` writes, too
    empty: Any = torch.empty(0)
    batch: Tensor = empty.set_(new_shared(4 * math.prod(shape), device="cpu"), 0, shape)
    return batch
