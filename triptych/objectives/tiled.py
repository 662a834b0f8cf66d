"""Contrastive loss over any number of columns, without the matrix of all logits.

At a local batch of B, G columns make (B, G) logits, and about ten such matrices live between the
forward and the backward pass. Here columns come in tiles: the forward pass keeps each row's
log-sum-exp, the backward pass computes a tile's logits again (DisCo-CLIP, Chen et al. 2023; Inf-CL,
Cheng et al. 2024). Nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from triptych.objectives.contrastive import (
    cross_entropy_rows,
    positive_pairs,
    similarity,
    soft_targets,
)

TILE = 4096
"""Columns of a tile, and the number up to which there is one. On one CPU core tiles of 1,024 to
8,192 columns take 0.6 to 0.9 of the time that whole matrices take, at 32,768 columns; smaller ones
need less memory, larger ones keep a GPU busier (`benchmarks/speed/contrastive_memory.py`)."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """Soft targets of a momentum encoder: the distribution of its queries over the same columns.

    Attributes:
        queries: (B, E) its embeddings of the rows, without gradient.
        alpha: Weight of its distribution in the targets, in [0, 1].
    """

    queries: Tensor
    alpha: float


def contrastive_rows(
    queries: Tensor,
    columns: Sequence[Tensor],
    temperature: Tensor,
    query_keys: Tensor,
    column_keys: Sequence[Tensor],
    *,
    teacher: Teacher | None = None,
    tile: int = TILE,
) -> Tensor:
    """Return each row's cross-entropy to its positives and to the teacher's distribution.

    More than `tile` columns are read tile by tile: the same values and gradients, while memory
    grows with B · tile instead of B · G.

    Args:
        queries: (B, E) L2-normalised.
        columns: (G, E) L2-normalised, in parts: embeddings of all processes, those of a queue.
        temperature: Scalar τ.
        query_keys: (B, F) int64; see `positive_pairs`. Each row has a positive.
        column_keys: (G, F) int64, in the same parts.
        teacher: Soft targets.
        tile: Columns whose logits exist at a time.

    Returns:
        (B,) float32, at least 0 without a teacher.
    """
    parts = [part for part in zip(columns, column_keys, strict=True) if len(part[0])]
    if sum(len(part) for part, _ in parts) > tile:
        return _tiled(queries, parts, temperature, query_keys, teacher, tile)
    sims = torch.cat([similarity(queries, part, temperature) for part, _ in parts], dim=1)
    positives = positive_pairs(query_keys, torch.cat([keys for _, keys in parts]))
    if teacher is None:
        return cross_entropy_rows(sims, soft_targets(positives, None, 0.0))
    with torch.no_grad():
        taught = [similarity(teacher.queries, part, temperature) for part, _ in parts]
    targets = soft_targets(positives, torch.cat(taught, dim=1), teacher.alpha)
    return cross_entropy_rows(sims, targets)


def _tiled(
    queries: Tensor,
    parts: Sequence[tuple[Tensor, Tensor]],
    temperature: Tensor,
    query_keys: Tensor,
    teacher: Teacher | None,
    tile: int,
) -> Tensor:
    """Do what `contrastive_rows` says, tile by tile."""
    alpha, taught = 0.0 if teacher is None else teacher.alpha, None
    if teacher is not None and alpha > 0:
        taught = teacher.queries.detach().float() / temperature.detach().float()
    rows = _Rows(query_keys, [keys for _, keys in parts], tile, taught, alpha)
    columns = [part.float() for part, _ in parts]
    scale = temperature.float().reciprocal()
    found: Tensor = _TiledCrossEntropy.apply(queries.float(), scale, rows, *columns)  # type: ignore[no-untyped-call]
    return found


@dataclass(frozen=True, slots=True)
class _Rows:
    """What the loss reads without a gradient.

    Attributes:
        keys: (B, F) of the rows.
        column_keys: (G_i, F) of each part of the columns.
        tile: Columns at a time.
        taught: (B, E) the teacher's queries over the temperature; None without a teacher.
        alpha: Its weight.
    """

    keys: Tensor
    column_keys: list[Tensor]
    tile: int
    taught: Tensor | None
    alpha: float

    def tiles(self, columns: Sequence[Tensor]) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
        """Yield (number of the part, its rows, (t, E) columns, (B, t) whether positive)."""
        for number, (part, keys) in enumerate(zip(columns, self.column_keys, strict=True)):
            for start in range(0, len(part), self.tile):
                some = slice(start, start + self.tile)
                yield number, some, part[some], positive_pairs(self.keys, keys[some])


class _TiledCrossEntropy(torch.autograd.Function):
    """log Σ exp(row) - Σ target · row, with targets α · softmax(taught) + (1 - α) · positives."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, queries: Tensor, scale: Tensor, rows: _Rows, *columns: Tensor
    ) -> Tensor:
        total = queries.new_full((len(queries),), -torch.inf)
        taught_total, taught_mean = total.clone(), torch.zeros_like(total)
        positive_sum, count = torch.zeros_like(total), torch.zeros_like(total)
        with torch.autocast(queries.device.type, enabled=False):
            for _, _, part, positive in rows.tiles(columns):
                logits = (queries @ part.T).mul_(scale)
                total = torch.logaddexp(total, torch.logsumexp(logits, dim=1))
                if rows.taught is not None:
                    taught = rows.taught @ part.T
                    joined = torch.logaddexp(taught_total, torch.logsumexp(taught, dim=1))
                    shares = taught.sub_(joined[:, None]).exp_()
                    taught_mean = taught_mean * torch.exp(taught_total - joined)
                    taught_mean += shares.mul_(logits).sum(dim=1)
                    taught_total = joined
                count += positive.sum(dim=1)
                positive_sum += logits.masked_fill_(~positive, 0.0).sum(dim=1)
        ctx.rows = rows
        ctx.save_for_backward(queries, scale, total, taught_total, count, *columns)
        target = rows.alpha * taught_mean + (1 - rows.alpha) * positive_sum / count
        return total - target

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows: _Rows = ctx.rows
        queries, scale, total, taught_total, count, *columns = ctx.saved_tensors
        by_queries, by_scale = torch.zeros_like(queries), torch.zeros_like(scale)
        by_columns = [
            torch.empty_like(part) if needed else None
            for part, needed in zip(columns, ctx.needs_input_grad[3:], strict=True)
        ]
        label = ((1 - rows.alpha) / count)[:, None]
        with torch.autocast(queries.device.type, enabled=False):
            for number, some, part, positive in rows.tiles(columns):
                raw = queries @ part.T
                d = (raw * scale).sub_(total[:, None]).exp_()
                if rows.taught is not None:
                    taught = (rows.taught @ part.T).sub_(taught_total[:, None]).exp_()
                    d.sub_(taught, alpha=rows.alpha)
                d.sub_(positive * label).mul_(grad[:, None])
                by_scale += raw.mul_(d).sum()
                d.mul_(scale)
                by_queries.addmm_(d, part)
                by_part = by_columns[number]
                if by_part is not None:
                    torch.mm(d.T, queries, out=by_part[some])
        return by_queries, by_scale, None, *by_columns
