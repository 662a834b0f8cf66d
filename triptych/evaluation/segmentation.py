"""Semantic segmentation: mean IoU and accuracies of pixels, as mmsegmentation takes them.

Intersections and unions are summed over the data set before they are divided. Pixels that the
truth ignores count nowhere. A class that is neither true nor predicted anywhere has no IoU, and
is in no mean; one that is predicted and never true has IoU 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from triptych.core.errors import CapabilityError, DataError
from triptych.core.outputs import MetricValue, Predictions
from triptych.evaluation.bootstrap import bootstrap_sums, interval_text
from triptych.evaluation.metrics import ByIndex, reference_of

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]


def count_areas(predicted: Ints, truth: Ints, num_classes: int, ignored: int) -> Floats:
    """Return (3, C) pixels of one image: of each class right, predicted and true.

    Args:
        predicted: (H, W) class numbers.
        truth: (H, W) class numbers, or `ignored`, where the prediction does not count either.
        num_classes: Classes C.
        ignored: The number of pixels that are ignored.

    Raises:
        DataError: The shapes differ, or a number is of no class.
    """
    if predicted.shape != truth.shape:
        raise DataError(f"a mask of shape {predicted.shape} is predicted for one of {truth.shape}")
    counts = truth != ignored
    guess, right = predicted[counts].astype(np.int64), truth[counts].astype(np.int64)
    for values in (guess, right):
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < num_classes:
            raise DataError(f"a mask has classes outside 0 to {num_classes - 1}")
    hits = guess[guess == right]
    areas = [np.bincount(values, minlength=num_classes) for values in (hits, guess, right)]
    return np.stack(areas).astype(np.float64)


def iou_from_areas(areas: Floats) -> Floats:
    """Return the IoU (..., C) of (..., 3, C) summed areas; NaN for a class without a union."""
    hits, guess, right = np.moveaxis(areas, -2, 0)
    return _ratio(hits, guess + right - hits)


def mean_iou_from_areas(areas: Floats) -> Floats:
    """Return the mean IoU (...) of (..., 3, C) summed areas; NaN where no pixel counts."""
    return _mean_of_defined(iou_from_areas(areas))


def pixel_accuracy_from_areas(areas: Floats) -> Floats:
    """Return the share of right pixels (...) of (..., 3, C) summed areas."""
    sums = areas.sum(axis=-1)
    return _ratio(sums[..., 0], sums[..., 2])


def class_accuracy_from_areas(areas: Floats) -> Floats:
    """Return the mean (...) over true classes of the share of their pixels that are right."""
    return _mean_of_defined(_ratio(areas[..., 0, :], areas[..., 2, :]))


def _ratio(parts: Floats, wholes: Floats) -> Floats:
    found: Floats = np.divide(parts, wholes, out=np.full_like(wholes, np.nan), where=wholes > 0)
    return found


def _mean_of_defined(values: Floats) -> Floats:
    is_defined = ~np.isnan(values)
    return _ratio(np.where(is_defined, values, 0.0).sum(-1), is_defined.sum(-1).astype(np.float64))


class SegmentationMetric:
    """Mean IoU as "miou", "pixel_accuracy", "class_accuracy", and the IoU of each class.

    "miou_majority" is the mean IoU of the most frequent class of these masks everywhere: a blind
    guess.

    Args:
        truths: From the position of an image to what reads its mask: (H, W) class numbers.
        names: The classes, in the order of their numbers.
        ignored: The number of pixels that are ignored.
    """

    name = "miou"

    def __init__(
        self, truths: Mapping[int, Callable[[], Ints]], names: Sequence[str], *, ignored: int
    ) -> None:
        self._truths, self._names, self._ignored = truths, tuple(names), ignored
        self._areas: ByIndex[Floats] = ByIndex(self.name, len(truths))

    def update(self, predictions: Predictions) -> None:
        """Take in `predictions.scores["mask"]`, (H, W) class numbers an image at its own size."""
        if "mask" not in predictions.scores:
            raise CapabilityError("miou: the task predicts no masks; choose a segmentation task")
        areas = [
            count_areas(
                np.asarray(mask),
                reference_of(self._truths, int(position), self.name)(),
                len(self._names),
                self._ignored,
            )
            for position, mask in zip(predictions.index, predictions.scores["mask"], strict=True)
        ]
        self._areas.add(predictions.index, areas)

    def compute(self) -> list[MetricValue]:
        """Return the numbers; images are what the bootstrap resamples.

        Raises:
            DataError: There is no image, or no pixel counts.
        """
        table = np.stack(list(self._areas.items().values()))  # (N, 3, C)
        if not table[:, 2].any():
            raise DataError("every pixel of these masks is ignored: there is nothing to score")
        how = f"at the images' own sizes.{self._areas.missing()}"
        sums = f"intersections and unions summed over the images, {how}"
        values = [
            _value("miou", table, mean_iou_from_areas, f"Mean IoU of classes, {sums}"),
            _value("pixel_accuracy", table, pixel_accuracy_from_areas, f"Share of pixels, {how}"),
            _value(
                "class_accuracy", table, class_accuracy_from_areas, f"Mean share by class, {how}"
            ),
            self._majority(table, sums),
        ]
        is_met = ~np.isnan(iou_from_areas(table.sum(0)))
        for number in np.flatnonzero(is_met):
            name, part = self._names[number], table[:, :, number : number + 1]
            values.append(
                _value(
                    f"iou/{name}",
                    part,
                    mean_iou_from_areas,
                    f"IoU, {sums} Class: {name}.",
                )
            )
        return values

    def _majority(self, table: Floats, sums: str) -> MetricValue:
        common = int(table[:, 2].sum(0).argmax())
        blind = np.zeros_like(table)
        blind[:, 2] = table[:, 2]
        blind[:, 0, common] = table[:, 2, common]
        blind[:, 1, common] = table[:, 2].sum(-1)
        said = f"Mean IoU of the most frequent class of these masks, {self._names[common]}, "
        return _value("miou_majority", blind, mean_iou_from_areas, f"{said}everywhere: {sums}")


def _value(
    name: str, table: Floats, statistic: Callable[[Floats], Floats], protocol: str
) -> MetricValue:
    """Return a statistic of areas (N, 3, C) summed over images.

    Resamples that leave it undefined, such as those without a rare class, are passed over.
    """
    shape = table.shape[1:]

    def defined(flat: Floats) -> Floats:
        values = statistic(flat.reshape(-1, *shape))
        return values[~np.isnan(values)]

    low, high = bootstrap_sums(table.reshape(len(table), -1), defined)
    return MetricValue(
        name=name,
        value=float(statistic(table.sum(0))),
        low=low,
        high=high,
        num_items=len(table),
        protocol=f"{protocol} {interval_text()}",
    )
