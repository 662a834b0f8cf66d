"""Learning rate and weights of objectives, each a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set

from torch.optim import Optimizer

from triptych.core.errors import ConfigError, nearest
from triptych.train.config import ObjectiveWeight, OptimConfig


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
    low = min(
        config.min_learning_rate, peak
    )  # a lower layer's peak may be below the common final rate
    left = 1 - done if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return low + (peak - low) * left


def apply_schedule(optimizer: Optimizer, step: int, config: OptimConfig, max_steps: int) -> None:
    """Set the learning rate of each group for a step, from the group's `peak_lr`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(
            step, peak=group["peak_lr"], config=config, max_steps=max_steps
        )


def weight_at(schedule: ObjectiveWeight, step: int) -> float:
    """Return the weight of an objective at a step.

    Args:
        schedule: The objective's weight over the run.
        step: Optimizer steps done before this one, so 0 for the first.

    Returns:
        The factor on the loss; exactly 0.0 where the objective is not computed.
    """
    since = step - schedule.start_step
    ended = schedule.end_step is not None and step >= schedule.end_step
    if since < 0 or ended or since % schedule.every_steps:
        return 0.0
    if since + 1 < schedule.ramp_steps:
        return schedule.weight * (since + 1) / schedule.ramp_steps
    return schedule.weight


class ObjectiveSchedules:
    """The weights of all objectives of a task.

    Args:
        weights: One schedule per objective. An empty sequence gives each objective weight 1;
            otherwise objectives that are not listed are not trained.
        objective_names: Objectives that the task offers.

    Raises:
        ConfigError: A name that the task does not offer, or a name given twice.
    """

    def __init__(self, weights: Sequence[ObjectiveWeight], objective_names: Iterable[str]) -> None:
        names = sorted(objective_names)
        self.schedules = tuple(weights) or tuple(ObjectiveWeight(name=name) for name in names)
        seen: set[str] = set()
        for schedule in self.schedules:
            if schedule.name not in names:
                raise ConfigError(
                    f"objective weight for {schedule.name!r}: the task has {names}"
                    + nearest(schedule.name, names)
                )
            if schedule.name in seen:
                raise ConfigError(f"objective {schedule.name!r} has two weights; give it one")
            seen.add(schedule.name)

    def at(self, step: int) -> dict[str, float]:
        """Return the weights above zero at a step; steps count from 0."""
        weights = {schedule.name: weight_at(schedule, step) for schedule in self.schedules}
        return {name: weight for name, weight in weights.items() if weight > 0}

    def check(self, max_steps: int, *, among: Set[str] | None = None, what: str = "") -> None:
        """Raise a ConfigError if any step of the run would have no loss.

        Args:
            max_steps: Steps of the run.
            among: Objectives that count; None counts all.
            what: Suffix of the message that names the source of these objectives.
        """
        counted = [s for s in self.schedules if among is None or s.name in among]
        for step in range(max_steps):
            if not any(weight_at(schedule, step) > 0 for schedule in counted):
                names = [s.name for s in counted] or f"one of {sorted(among or ())}"
                raise ConfigError(
                    f"no objective is active at step {step} (counted from 0) of {max_steps}{what}: "
                    f"change weight, start_step, end_step or every_steps of {names}"
                )
