"""Boxes: conversions, intersection over union, and accuracy at a threshold.

Formats: `xyxy` = left, top, right, bottom; `xywh` = left, top, width, height; `cxcywh` = centre,
width, height. Units are the caller's; a conversion keeps them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.core.errors import DataError


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert (..., 4) corner-and-size boxes to two corners."""
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Convert (..., 4) two-corner boxes to corner and size."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert (..., 4) centre-and-size boxes to two corners."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert (..., 4) two-corner boxes to centre and size."""
    size = boxes[..., 2:] - boxes[..., :2]
    return torch.cat([boxes[..., :2] + size / 2, size], dim=-1)


def iou_xyxy(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union of boxes, pair by pair.

    Args:
        first: (..., 4) float boxes, xyxy. A box with right < left or bottom < top is empty.
        second: (..., 4) float boxes of the same unit; broadcast against `first`.

    Returns:
        (...) shares in [0, 1]; 0 where both boxes are empty.

    Raises:
        DataError: The last dimension is not 4.
    """
    if first.shape[-1] != 4 or second.shape[-1] != 4:
        raise DataError(f"boxes need 4 numbers, got {tuple(first.shape)} and {tuple(second.shape)}")
    top_left = torch.maximum(first[..., :2], second[..., :2])
    bottom_right = torch.minimum(first[..., 2:], second[..., 2:])
    common = (bottom_right - top_left).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (first, second)]
    union = areas[0] + areas[1] - common
    return torch.where(union > 0, common / union.clamp(min=torch.finfo(union.dtype).tiny), 0.0)


def hits_at_iou(predicted: Tensor, target: Tensor, threshold: float = 0.5) -> Tensor:
    """Return (N,) bool, True where the IoU is at least `threshold`.

    The RefCOCO measure (Yu et al., 2016) at 0.5. An overlap of exactly the threshold is right.

    Args:
        predicted: (N, 4) boxes, xyxy.
        target: (N, 4) boxes, xyxy, of the same unit.
        threshold: Least overlap of a right box, in [0, 1].
    """
    return iou_xyxy(predicted, target) >= threshold


def accuracy_at_iou(predicted: Tensor, target: Tensor, threshold: float = 0.5) -> float:
    """Return the share of boxes whose IoU is at least `threshold`.

    Raises:
        DataError: There is no box.
    """
    if len(predicted) == 0:
        raise DataError("there is no box to score; evaluate at least one")
    return float(hits_at_iou(predicted, target, threshold).double().mean())
