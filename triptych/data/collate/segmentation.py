"""Batches of images with the class of each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from triptych.data.collate.base import SampleProblem
from triptych.data.masks import ClassMap, MaskClasses, check_mask_size, decode_mask
from triptych.data.records import Record
from triptych.data.skips import SkipKind
from triptych.data.transforms.pipeline import TransformedImage


@dataclass(frozen=True, slots=True)
class SegmentedImage:
    """What segmentation needs of one image beside its pixels.

    Attributes:
        classes: (S, S) class numbers, moved as the image was; None outside training.
        width: Width of the original in pixels.
        height: Height of the original in pixels.
    """

    classes: ClassMap | None
    width: int
    height: int


class SegmentationCollator:
    """Read masks, and move them with their images.

    Outside training batches hold no masks: scores take them at the images' own sizes. A mask that
    cannot be used excludes its image there too.

    Args:
        classes: What their values mean.
        train: Whether batches hold masks, and a record without one is a problem.
    """

    needs_boxes = False

    def __init__(self, classes: MaskClasses, *, train: bool = True) -> None:
        self.classes, self.train = classes, train

    def sample(
        self, record: Record, image: TransformedImage, rng: np.random.Generator
    ) -> SegmentedImage:
        """Make one sample.

        Raises:
            ImageProblem: The mask cannot be used.
            SampleProblem: In training, there is none.
        """
        del rng
        if record.mask is None:
            if self.train:
                message = f"record {record.record_id}: has no mask"
                raise SampleProblem(SkipKind.MISSING_FIELD, message)
            return SegmentedImage(None, image.width, image.height)
        values = decode_mask(record.mask)
        check_mask_size(values, image.width, image.height, record.mask)
        classes = self.classes.numbers(values, record.mask)
        moved = image.mask(classes) if self.train else None
        return SegmentedImage(moved, image.width, image.height)

    def batch(self, samples: Sequence[SegmentedImage]) -> dict[str, Tensor]:
        """Join samples.

        Returns:
            `image_size_px` (B, 2) int64, width and height of the originals; in training `mask`
            (B, S, S) int64, `IGNORED` where a pixel is ignored.
        """
        sizes = torch.tensor([[sample.width, sample.height] for sample in samples])
        maps = [sample.classes for sample in samples if sample.classes is not None]
        if not maps:
            return {"image_size_px": sizes}
        return {"image_size_px": sizes, "mask": torch.from_numpy(np.stack(maps)).long()}
