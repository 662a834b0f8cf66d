"""A start from which every code is in use."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.models.dvae.model import DVAEEncoder

SHRINKAGE = 1e-3
"""Added to each variance, as a share of the largest, before features are whitened."""


@torch.no_grad()
def spread_codes(
    encoder: DVAEEncoder, image: Tensor, scale: float, generator: torch.Generator | None = None
) -> None:
    """Set the last layer so that logits tell places apart.

    With a drawn last layer all places of all images nearly agree on one code, and a short
    training makes this worse. Here each code gets a random direction in the whitened features of
    the last group, so that which code wins depends on what the place shows.

    Args:
        encoder: Its `output` is changed.
        image: (B, 3, H, W) float in [0.1, 0.9], images of the training data.
        scale: Deviation of the logits over places and codes; their mean at each code is 0.
        generator: Source of the directions; the global one if absent.
    """
    features = encoder.features(image).movedim(1, -1).flatten(0, 2).float()  # (places, D)
    mean = features.mean(dim=0)
    centred = (features - mean).double()
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    variances = variances.clamp(min=0)
    floor = SHRINKAGE * variances.max().clamp(min=torch.finfo(torch.float64).tiny)
    whiten = axes * (variances + floor).rsqrt() @ axes.T
    shape = encoder.output.weight.shape[:2]  # (V, D)
    directions = torch.randn(shape, generator=generator, device=features.device)
    weight = directions @ whiten.to(directions)
    weight *= scale / (centred.float() @ weight.T).std()
    encoder.output.weight.copy_(weight[:, :, None, None])
    assert encoder.output.bias is not None
    encoder.output.bias.copy_(-weight @ mean)
