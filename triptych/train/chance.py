"""What a loss is for a model that ignores its input: the entropy of what it should predict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Chance:
    """Where the chance value of a loss comes from: exactly one of the first four.

    Attributes:
        columns: The labels are the candidates of a contrastive loss, all equally likely: ln of
            their number, which is that of the pairs of a pass on all processes and of the queue.
        match_share: The labels say of pairs whether they match, this share of them by design.
        outputs: All of so many outputs are equally likely: the logarithm of their number.
        labels: The key of a batch that holds the labels; their entropy is measured in training.
            Negative numbers are no labels.
        queue_size: Pairs that the feature queue holds once it is full.
        mask: The key that says which labels count, if not all do.
        skip: How many labels of each row are read but not predicted.
        summed: Whether the loss is a sum over the labels of a row, and not their mean.
    """

    columns: bool = False
    match_share: float | None = None
    outputs: int | None = None
    labels: str | None = None
    queue_size: int = 0
    mask: str | None = None
    skip: int = 0
    summed: bool = False

    def value(self, num_columns: int, counted: LabelCounts | None = None) -> float | None:
        """Return the chance value in nats; None where it must be measured and was not.

        Args:
            num_columns: Candidates of a contrastive loss.
            counted: The labels so far.
        """
        if self.columns:
            return math.log(num_columns) if num_columns > 0 else None
        if self.match_share is not None:
            return entropy((self.match_share, 1 - self.match_share))
        if self.outputs is not None:
            return math.log(self.outputs)
        if counted is None or not counted.total:
            return None
        return counted.entropy() * (counted.total / counted.rows if self.summed else 1.0)

    def read(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, int] | None:
        """Return the labels of a batch, flat, and its number of rows; None where it has none."""
        found = None if self.labels is None else batch.get(self.labels)
        if found is None or found.is_floating_point():
            return None
        rows = len(found)
        counts = found >= 0
        if self.mask is not None:
            counts &= batch[self.mask].view_as(found)
        if self.skip:
            found, counts = found[:, self.skip :], counts[:, self.skip :]
        return found[counts], rows


ITM_CHANCE = Chance(match_share=1 / 3)
"""A pair, its text with a wrong image, and its image with a wrong text."""


class LabelCounts:
    """How often each label was met.

    Attributes:
        total: Labels so far.
        rows: Samples so far.
    """

    def __init__(self) -> None:
        self.total = self.rows = 0
        self._counts = torch.zeros(0, dtype=torch.int64)

    def add(self, labels: Tensor, rows: int) -> None:
        """Count (N,) int64 labels, none of them negative, of so many samples."""
        counts = torch.bincount(labels.cpu(), minlength=len(self._counts))
        counts[: len(self._counts)] += self._counts
        self._counts = counts
        self.total, self.rows = self.total + len(labels), self.rows + rows

    def entropy(self) -> float:
        """Return the entropy in nats, without the bias of few labels (Miller 1955)."""
        counts = self._counts[self._counts > 0].double()
        shares = counts / counts.sum()
        return float(-(shares * shares.log()).sum()) + (len(counts) - 1) / (2 * self.total)

    def state(self) -> dict[str, Any]:
        """Return the counts, as JSON values."""
        return {"total": self.total, "rows": self.rows, "counts": self._counts.tolist()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.total, self.rows = int(state["total"]), int(state["rows"])
        self._counts = torch.tensor(state["counts"], dtype=torch.int64)


def entropy(shares: Iterable[float]) -> float:
    """Return the entropy of a distribution in nats."""
    return -sum(share * math.log(share) for share in shares if share > 0)
