"""Image-text contrastive loss with soft targets and queues (ITC)."""

from __future__ import annotations

import torch
from torch import Tensor


def similarity(first: Tensor, second: Tensor, temperature: Tensor) -> Tensor:
    """Return first · secondᵀ / τ in float32, also under autocast.

    In bf16 a cosine is off by up to 0.004, which a small temperature makes 0.4 of a logit.

    Args:
        first: (B, E) L2-normalised.
        second: (G, E) L2-normalised.
        temperature: Scalar τ.

    Returns:
        (B, G) float32.
    """
    with torch.autocast(first.device.type, enabled=False):
        return first.float() @ second.float().T / temperature.float()


def positive_pairs(row_keys: Tensor, column_keys: Tensor) -> Tensor:
    """Say which rows and columns belong together.

    Two images may share a caption, and one image may have several: all of these are positives,
    and none of them may be drawn as a negative.

    Args:
        row_keys: (B, F) int64, one column a kind of key, such as image and caption.
        column_keys: (G, F) int64, the same kinds.

    Returns:
        (B, G) bool, True where any kind of key is equal.
    """
    found = row_keys[:, :1] == column_keys[:, 0]
    for kind in range(1, row_keys.shape[1]):
        found |= row_keys[:, kind, None] == column_keys[:, kind]
    return found


def soft_targets(positives: Tensor, teacher_sim: Tensor | None, alpha: float) -> Tensor:
    """Mix the labels with a teacher's distribution: α·softmax(teacher) + (1 - α)·labels.

    Args:
        positives: (B, G) bool; each row has at least one True. A row's label mass is shared
            equally among its positives.
        teacher_sim: (B, G) similarities of the momentum encoders over the temperature, or None.
        alpha: Weight of the teacher in [0, 1].

    Returns:
        (B, G) float32; each row sums to 1.
    """
    labels = positives.float()
    labels = labels / labels.sum(dim=1, keepdim=True)
    if teacher_sim is None or alpha == 0.0:
        return labels
    return alpha * torch.softmax(teacher_sim.float(), dim=1) + (1 - alpha) * labels


def itc_loss(sim_i2t: Tensor, sim_t2i: Tensor, targets_i2t: Tensor, targets_t2i: Tensor) -> Tensor:
    """Return the mean of both directions' cross-entropies (paper, section 3.3; ALBEF, eq. 6).

    Args:
        sim_i2t: (B, G) similarities of each image to all texts, over the temperature.
        sim_t2i: (B, G) similarities of each text to all images, over the temperature.
        targets_i2t: (B, G) distribution over texts.
        targets_t2i: (B, G) distribution over images.

    Returns:
        Scalar float32, at least 0; ln G for equal similarities.
    """
    i2t, t2i = (
        cross_entropy_rows(sim, targets).mean()
        for sim, targets in ((sim_i2t, targets_i2t), (sim_t2i, targets_t2i))
    )
    return (i2t + t2i) / 2


def cross_entropy_rows(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (B,) cross-entropies of (B, G) logits to distributions (B, G), in float32."""
    return -(torch.log_softmax(logits.float(), dim=1) * targets).sum(dim=1)
