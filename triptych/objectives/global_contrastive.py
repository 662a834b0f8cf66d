"""Global contrastive loss (GC; Singh et al. 2022, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triptych.distributed.collectives import all_gather, all_gather_with_grad, mean_over_ranks
from triptych.distributed.env import rank

ContrastiveScope = Literal["global", "local"]


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
    if matched is None:
        matched = torch.ones(len(image), dtype=torch.bool, device=image.device)
    all_images, all_texts = _columns(image, scope), _columns(text, scope)
    targets_i2t, targets_t2i = _targets(matched, keys)
    with torch.autocast(image.device.type, enabled=False):
        scale = logit_scale.float().exp()
        i2t = scale * image[matched].float() @ all_texts.float().T  # (matched rows, G)
        t2i = scale * text[matched].float() @ all_images.float().T
    per_row = (_cross_entropy(i2t, targets_i2t) + _cross_entropy(t2i, targets_t2i)) / 2
    return mean_over_ranks(per_row.sum(), matched.sum())


def _columns(embedding: Tensor, scope: ContrastiveScope) -> Tensor:
    """Return the embeddings of all processes (G, E)."""
    if scope == "global":
        return all_gather_with_grad(embedding)
    joined, first = all_gather(embedding), _first_row(embedding)
    return torch.cat([joined[:first], embedding, joined[first + len(embedding) :]])


def _first_row(tensor: Tensor) -> int:
    """Return the position of this process's first row among the rows of all."""
    lengths = all_gather(torch.tensor([len(tensor)], device=tensor.device))
    return int(lengths[: rank()].sum())


def _targets(matched: Tensor, keys: PairKeys | None) -> tuple[Tensor, Tensor]:
    """Return the distributions over texts and over images of each matched row, (rows, G)."""
    own = _first_row(matched) + torch.arange(len(matched), device=matched.device)[matched]
    columns = torch.arange(len(all_gather(matched)), device=matched.device)
    same = own[:, None] == columns
    if keys is None:
        return same.float(), same.float()
    is_pair = all_gather(matched)
    same_image = keys.image[matched][:, None] == all_gather(keys.image)
    same_text = keys.caption[matched][:, None] == all_gather(keys.caption)
    i2t = same | same_text | (same_image & is_pair)
    t2i = same | same_image | (same_text & is_pair)
    return tuple(p.float() / p.sum(dim=1, keepdim=True) for p in (i2t, t2i))  # type: ignore[return-value]


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -(torch.log_softmax(logits, dim=1) * targets).sum(dim=1)
