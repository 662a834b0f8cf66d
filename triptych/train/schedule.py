"""Learning rate as a pure function of the step: linear warm-up, then a cosine or a line."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from triptych.train.config import OptimConfig


def learning_rate_at(step: int, *, peak: float, config: OptimConfig, max_steps: int) -> float:
    """Return the learning rate of a step.

    Args:
        step: Optimizer steps done before this one; 0 has `config.warmup_learning_rate`.
        peak: Learning rate at the end of warm-up, reached at step `config.warmup_steps`.
        config: Warm-up length and the two ends.
        max_steps: Step at which the decay would reach `config.min_learning_rate`.
    """
    if step < config.warmup_steps:
        start = config.warmup_learning_rate
        return start + (peak - start) * step / config.warmup_steps
    done = min(1.0, (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps))
    low = min(config.min_learning_rate, peak)  # a lower layer's peak may be below the common end
    left = 1 - done if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return low + (peak - low) * left


def apply_schedule(optimizer: Optimizer, step: int, config: OptimConfig, max_steps: int) -> None:
    """Set the learning rate of each group for a step, from the group's `peak_lr`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(
            step, peak=group["peak_lr"], config=config, max_steps=max_steps
        )
