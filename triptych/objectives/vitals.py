"""Scalars that tell how a task of image-text pairs is doing, beside its losses."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.objectives import IGNORE_INDEX

ROWS = 256
"""Pairs of a micro-batch whose embeddings are looked at."""

_NOISE = 1e-8
"""Squared variance below which embeddings differ by rounding alone."""


class PairWatch:
    """What a task notes of a micro-batch of pairs until the trainer asks for it.

    It notes while gradients are computed, so that a validation between two steps leaves no trace.
    """

    def __init__(self) -> None:
        self._embeddings: tuple[Tensor, Tensor] | None = None
        self._labels: Tensor | None = None

    def note_embeddings(self, image: Tensor, text: Tensor) -> None:
        """Note the (B, E) L2-normalised embeddings of both sides."""
        if torch.is_grad_enabled():
            self._embeddings = image.detach()[:ROWS], text.detach()[:ROWS]

    def note_matches(self, labels: Tensor) -> None:
        """Note the labels of ITM: 1 = match, 0 = no match, IGNORE_INDEX = not read."""
        if torch.is_grad_enabled():
            self._labels = labels

    @torch.no_grad()
    def take(self, *, spread: bool = True) -> dict[str, Tensor]:
        """Return scalars of what was noted since the last call, once.

        Args:
            spread: Whether the embeddings are looked at, which takes most of the time.

        Returns:
            `embedding/image_cosine`, `embedding/image_rank` and the same of texts, see
            `spread_of`; `share/itm`, the share of matches among the labels of ITM.
        """
        found: dict[str, Tensor] = {}
        if spread and self._embeddings is not None and len(self._embeddings[0]) > 1:
            for side, rows in zip(("image", "text"), self._embeddings, strict=True):
                cosine, rank = spread_of(rows)
                found |= {f"embedding/{side}_cosine": cosine, f"embedding/{side}_rank": rank}
        if self._labels is not None:
            read = (self._labels != IGNORE_INDEX).sum().clamp(min=1)
            found["share/itm"] = (self._labels == 1).sum() / read
        self._embeddings = self._labels = None
        return found


def spread_of(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far embeddings lie apart.

    Args:
        rows: (B, E) L2-normalised, B > 1.

    Returns:
        Scalars float32: the mean cosine of two different rows, 1 if all are equal; and the
        effective rank of their covariance, (Σ λ)² / Σ λ² of its eigenvalues λ: 1 if they lie on a
        line, at most min(B - 1, E), 0 if all are equal.
    """
    rows = rows.float()
    number, mean = len(rows), rows.mean(dim=0)
    cosine = (number * mean.square().sum() - 1) / (number - 1)
    centred = rows - mean
    gram = centred @ centred.T if number <= rows.shape[1] else centred.T @ centred
    total = centred.square().sum()
    return cosine, total.square() / (gram.square().sum() + _NOISE)


def temperature_vitals(temperature: Tensor, low: float, high: float) -> dict[str, float]:
    """Return τ and the clamps between which it is learned."""
    return {
        "temperature": float(temperature.detach()),
        "temperature/min": low,
        "temperature/max": high,
    }
