"""Self-distillation without labels (DINO, Caron et al. 2021, section 3.1).

A student sees all crops of an image, a teacher only the large ones; the student learns to predict
from each crop the teacher's output for another one. The teacher is a momentum copy of the student;
its outputs are centred and sharpened, so that neither one class nor all of them win.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from triptych.distributed.collectives import all_reduce_mean


def dino_loss(student_logits: Tensor, teacher_probs: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy between different crops of an image (equation 3).

    Args:
        student_logits: (C, B, K) of all crops, those that the teacher sees first, in its order.
        teacher_probs: (G, B, K) of the large crops, without gradient, G at most C.
        temperature: Of the student's softmax.

    Returns:
        Scalar float32: the mean over images and over the G·(C - 1) pairs of two crops.
    """
    log_probs = torch.log_softmax(student_logits.float() / temperature, dim=-1)
    with torch.autocast(log_probs.device.type, enabled=False):  # bf16 rounds ln K by 1/64
        pairs = -torch.einsum("gbk,cbk->gc", teacher_probs.float(), log_probs)  # (G, C)
    num_large, num_crops = pairs.shape
    other = ~torch.eye(num_large, num_crops, dtype=torch.bool, device=pairs.device)
    num_pairs = num_large * (num_crops - 1)
    return (pairs * other).sum() / (num_pairs * student_logits.shape[1])


def teacher_distribution(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Return the teacher's centred and sharpened softmax, without gradient.

    Args:
        logits: (..., K).
        center: (K,).
        temperature: Below the student's.
    """
    return torch.softmax((logits.detach().float() - center) / temperature, dim=-1)


def moved_center(center: Tensor, logits: Tensor, momentum: float) -> Tensor:
    """Return the center after a step (equation 4): m·c + (1 - m)·mean over all processes' outputs.

    Args:
        center: (K,) float32.
        logits: (..., K) of the teacher; all processes have equally many.
        momentum: Share of the old center (paper: 0.9).
    """
    mean = all_reduce_mean(logits.detach().float().flatten(0, -2).mean(dim=0))
    return torch.lerp(mean, center, momentum)


def teacher_momentum(step: int, max_steps: int, start: float) -> float:
    """Return the share of the teacher that a step keeps: from `start` to 1 along a cosine.

    Args:
        step: Optimizer steps done before this one.
        max_steps: Optimizer steps in all.
        start: Share at the beginning (paper: 0.996).
    """
    progress = min(1.0, step / max_steps)
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2
