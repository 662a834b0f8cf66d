"""The evidence lower bound of a discrete VAE (Ramesh et al. 2021, section 2.1, appendix A.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from triptych.distributed.collectives import all_gather_with_grad, shared_uniform
from triptych.distributed.env import world_size


def logit_laplace_nll(pixels: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """Return the mean of -ln f(x | μ, b) over all pixel values, in nats (equation 8).

    f(x | μ, b) = exp(-|logit(x) - μ| / b) / (2·b·x·(1 - x)): a Laplace distribution of the logit,
    so all its mass lies in (0, 1).

    Args:
        pixels: (B, 3, H, W) float, strictly between 0 and 1.
        location: (B, 3, H, W) μ.
        log_scale: (B, 3, H, W) ln b.

    Returns:
        Scalar float32.
    """
    x, log_scale = pixels.float(), log_scale.float()
    distance = (torch.logit(x) - location.float()).abs() * torch.exp(-log_scale)
    return (distance + log_scale + math.log(2) + torch.log(x * (1 - x))).mean()


def code_kl(logits: Tensor) -> Tensor:
    """Return the mean over positions of KL(q(code | image) || uniform), in nats.

    Args:
        logits: (B, V, h, w) of the encoder.

    Returns:
        Scalar float32 from 0 to ln V.
    """
    log_probs = torch.log_softmax(logits.float(), dim=1)
    negative_entropy = (log_probs.exp() * log_probs).sum(dim=1).mean()
    return negative_entropy + math.log(logits.shape[1])


def code_balance(logits: Tensor) -> Tensor:
    """Return KL(mean of q(code | image) over the batches of all processes || uniform), in nats.

    Unlike `code_kl` it lets each position be certain of its code, and only asks that all codes
    are used equally often; it keeps a small run from using one code for everything. Not in DALL-E.

    Args:
        logits: (B, V, h, w) of the encoder; many positions give a good estimate.

    Returns:
        Scalar float32 from 0 to ln V.
    """
    log_probs = torch.log_softmax(logits.float(), dim=1)
    num_positions = log_probs.shape[0] * log_probs.shape[2] * log_probs.shape[3]
    # in logarithms, where a frequency that underflows to 0 still has a gradient
    own = torch.logsumexp(log_probs, dim=(0, 2, 3)) - math.log(num_positions)  # (V,)
    log_shares = torch.logsumexp(all_gather_with_grad(own[None]), dim=0) - math.log(world_size())
    negative_entropy: Tensor = (log_shares.exp() * log_shares).sum()
    return negative_entropy + math.log(logits.shape[1])


def gumbel_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Draw a relaxed one-hot code at each position: softmax((logits + g) / τ), g Gumbel noise.

    Each image's noise has a seed of its own, from a generator that all processes share: it does not
    depend on how the batch is spread over processes.

    Args:
        logits: (B, V, h, w); B is the same on each process.
        temperature: τ; towards 0 the draw becomes one-hot.

    Returns:
        (B, V, h, w) float32, a distribution over dim 1.
    """
    size, device = len(logits), logits.device
    seeds = (shared_uniform(size, 2, device=torch.device("cpu")) * 2**24).long()  # 24 bits each
    generator = torch.Generator(device)
    waits = torch.empty(logits.shape, device=device)
    for row, seed in zip(waits, (seeds[:, 0] << 24 | seeds[:, 1]).tolist(), strict=True):
        row.exponential_(generator=generator.manual_seed(seed))
    return torch.softmax((logits.float() - waits.log()) / temperature, dim=1)


@torch.no_grad()
def code_usage(codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Return how many codes a set uses effectively, and the fraction that it uses at all.

    Args:
        codes: int64 of any shape.
        num_codes: Entries V of the codebook.

    Returns:
        Perplexity of the codes' frequencies, exp of their entropy, from 1 to V; and the fraction of
        the codebook that occurs. Scalars float32.
    """
    counts = torch.bincount(codes.flatten(), minlength=num_codes).float()
    shares = counts / counts.sum()
    entropy = -torch.special.xlogy(shares, shares).sum()
    return entropy.exp(), (counts > 0).float().mean()


def annealed(start: float, end: float, step: int, steps: int) -> float:
    """Return a value on the half cosine from `start` to `end` over `steps`, then `end`."""
    if step >= steps:
        return end
    return end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2
