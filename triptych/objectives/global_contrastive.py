"""Global contrastive loss (GC; Singh et al. 2022, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triptych.distributed.collectives import all_gather, all_gather_with_grad, mean_over_ranks
from triptych.distributed.env import rank
from triptych.objectives.tiled import contrastive_rows

ContrastiveScope = Literal["global", "local"]

NO_KEY = torch.iinfo(torch.int64).min
"""Of a column whose key tells nothing; no image and no text has it."""


@dataclass(frozen=True, slots=True)
class PairKeys:
    """What tells which images and texts of different rows are the same.

    Attributes:
        image: (B,) int64, equal for rows of one image.
        caption: (B,) int64, equal for rows of one text.
    """

    image: Tensor
    caption: Tensor


def global_contrastive_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    *,
    matched: Tensor | None = None,
    keys: PairKeys | None = None,
    scope: ContrastiveScope = "global",
) -> Tensor:
    """Return the mean of both directions' cross-entropies over the matched pairs of all processes.

    Every row of every process is a column. A mismatched pair (a swapped caption) has no row of its
    own, but its image and its text are negatives of the others.

    With `keys`, equal images or texts are no negatives: a row's positives are all texts that are
    equal to its own or that belong to its image, in equal shares. Released code knows only the
    row's own pair, and takes a swapped caption for a negative of the image that it belongs to.

    Args:
        image: (B, E) float, L2-normalised.
        text: (B, E) float, L2-normalised.
        logit_scale: Scalar, log(1 / τ).
        matched: (B,) bool, True = image and text belong together; None means all do.
        keys: Identities of images and texts.
        scope: "global" sends gradients to every process's embeddings; "local" takes those of other
            processes as constants.

    Returns:
        Scalar float32; 0 with a gradient of 0 when no pair of any process is matched. Averaged
        over processes it is the loss of the joined batch, and with "global" so is its gradient.
    """
    all_images, all_texts = _columns(image, scope), _columns(text, scope)
    if matched is None:
        matched = torch.ones(len(image), dtype=torch.bool, device=image.device)
    rows, of_texts, of_images = _keys(matched, keys, len(all_images))
    temperature = torch.exp(-logit_scale.float())
    i2t = contrastive_rows(image, (all_texts,), temperature, rows, (of_texts,))
    t2i = contrastive_rows(text, (all_images,), temperature, rows, (of_images,))
    per_row = torch.where(matched, (i2t + t2i) / 2, 0.0)
    return mean_over_ranks(per_row.sum(), matched.sum())


def _columns(embedding: Tensor, scope: ContrastiveScope) -> Tensor:
    """Return the embeddings of all processes (G, E)."""
    if scope == "global":
        return all_gather_with_grad(embedding)
    joined, first = all_gather(embedding), rank() * len(embedding)
    return torch.cat([joined[:first], embedding, joined[first + len(embedding) :]])


def _keys(
    matched: Tensor, keys: PairKeys | None, num_columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the keys that tell positives, of rows and of columns.

    A row's own column is a positive; with identities so is a column whose text (image) is equal,
    and one that is a pair and whose image (text) is.

    Returns:
        (B, F) of rows, and (G, F) of columns: of texts, then of images.
    """
    number = torch.arange(num_columns, device=matched.device)
    own = number[rank() * len(matched) :][: len(matched)]
    if keys is None:
        return own[:, None], number[:, None], number[:, None]
    rows = torch.stack([own, keys.image, keys.caption], dim=1)
    gathered = all_gather(torch.cat([rows, matched[:, None]], dim=1))
    _, images, texts, is_pair = gathered.unbind(dim=1)
    paired_images, paired_texts = (
        torch.where(is_pair.bool(), kind, NO_KEY) for kind in (images, texts)
    )
    return (
        rows,
        torch.stack([number, paired_images, texts], dim=1),
        torch.stack([number, images, paired_texts], dim=1),
    )
