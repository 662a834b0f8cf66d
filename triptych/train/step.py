"""The parts of one optimizer step between the loader and the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from triptych.core.errors import ConfigError, NonFiniteError
from triptych.core.host import keep_twin
from triptych.distributed.collectives import gather_objects
from triptych.distributed.engine import Engine, Reduced
from triptych.distributed.env import world_size
from triptych.train.work import Recompute

RECOMPUTE_SWITCH = "recompute"
"""Attribute of a module that can recompute its activations, such as `nn.block.Block`."""


@dataclass(frozen=True, slots=True)
class StepValues:
    """Numbers of one step, on the host.

    Attributes:
        losses: Unweighted losses by objective, means over the micro-batches.
        total: The weighted sum that was minimised.
        grad_norm: Global L2 norm of the gradients before clipping.
        stop: Whether any process was asked to stop.
        vitals: Other numbers of the step, whose names have a slash.
    """

    losses: dict[str, float]
    total: float
    grad_norm: float
    stop: bool = False
    vitals: dict[str, float] = field(default_factory=dict)

    @property
    def is_finite(self) -> bool:
        """Whether all losses and the norm are finite."""
        return all(map(math.isfinite, (*self.losses.values(), self.total, self.grad_norm)))


def unmarked(part: str) -> None:
    """Take no note of the part of a step that begins."""


def check_batch_keys(batch_keys: frozenset[str], batch: Mapping[str, Tensor]) -> None:
    """Raise a ConfigError if the loader does not yield what the task reads."""
    missing = sorted(batch_keys - batch.keys())
    if missing:
        raise ConfigError(
            f"the task reads {missing}, which the batch lacks; it holds {sorted(batch)}: "
            "use the collator that belongs to this task"
        )


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the batch on a device; copies from pinned memory do not wait.

    What is small and tells sizes, such as masks and labels, is known on the host, too.
    """
    moved = {key: tensor.to(device, non_blocking=True) for key, tensor in batch.items()}
    for key, tensor in batch.items():
        if not tensor.is_floating_point():
            keep_twin(moved[key], tensor)
    return moved


def backward_micro_batch(
    engine: Engine,
    batch: Mapping[str, Tensor],
    weights: Mapping[str, float],
    *,
    share: float,
    context: AbstractContextManager[None],
    last: bool = True,
    mark: Callable[[str], None] = unmarked,
) -> dict[str, Tensor]:
    """Add a micro-batch's gradient of `share * sum(weight * loss)` to the parameters.

    Args:
        engine: Runs the task that is trained.
        batch: A micro-batch on the training device.
        weights: Weights above zero by objective; the task is asked for exactly these.
        share: Factor on the gradient: 1 / accumulate, times the loss scale of fp16.
        context: Autocast for the forward pass.
        last: Whether gradients are complete after this micro-batch.
        mark: Called with "backward" between the two passes.

    Returns:
        The unweighted losses, detached, and `total`, their weighted sum.
    """
    with engine.explained(), context:
        losses = engine.losses(batch, frozenset(weights), last=last)
    missing = sorted(weights.keys() - losses.keys())
    if missing:
        raise ConfigError(f"the task returned no loss for {missing}; it returned {sorted(losses)}")
    total = torch.stack([weight * losses[name].float() for name, weight in weights.items()]).sum()
    mark("backward")
    with engine.explained():
        torch.autograd.backward(total * share)
    return {name: loss.detach().float() for name, loss in losses.items()} | {
        "total": total.detach()
    }


def finish_backward(
    engine: Engine,
    parameters: Sequence[nn.Parameter],
    micro_losses: list[dict[str, Tensor]],
    *,
    scale: float = 1.0,
    stop: bool = False,
) -> tuple[Reduced, StepValues]:
    """Complete the gradients, and bring a step's numbers to the host: its only wait.

    Args:
        engine: Reduces over processes, in one message.
        parameters: What is trained.
        micro_losses: What each micro-batch returned, and its vitals.
        scale: The loss scale, which the norm is divided by.
        stop: Whether this process was asked to stop.

    Returns:
        The gradients, still scaled, and the numbers, means over processes.
    """
    names = list(micro_losses[0])
    means = [torch.stack([losses[name] for losses in micro_losses]).mean() for name in names]
    flag = means[0].new_tensor(float(stop))
    reduced = engine.reduce(parameters, torch.stack([*means, flag]))
    *values, stops, norm = torch.cat([reduced.sums, reduced.norm[None] / scale]).tolist()
    found = {name: value / world_size() for name, value in zip(names, values, strict=True)}
    losses = {name: value for name, value in found.items() if "/" not in name}
    vitals = {name: value for name, value in found.items() if "/" in name}
    total = losses.pop("total")
    step = StepValues(losses=losses, total=total, grad_norm=norm, stop=stops > 0, vitals=vitals)
    return reduced, step


@torch.no_grad()
def clip_gradients(
    gradients: list[Tensor],
    norms: Tensor | float,
    max_norm: float | None,
    *,
    scale: float = 1.0,
) -> None:
    """Undo the loss scale and scale gradients down to a norm, in place.

    Args:
        gradients: This process's gradients, or its parts of them.
        norms: Their global norm, or (N,) the norm of each, which `max_norm` then bounds one by one;
            without the loss scale; finite.
        max_norm: Norm above which gradients are scaled down; None leaves them as they are.
        scale: The loss scale.
    """
    if max_norm is not None and isinstance(norms, Tensor):
        factors = max_norm / norms.clamp(min=max_norm) / scale
        torch._foreach_mul_(gradients, list(factors.unbind()))
        return
    factor = 1.0 if max_norm is None else min(1.0, max_norm / (float(norms) + 1e-6))
    if factor != 1.0 or scale != 1.0:
        torch._foreach_mul_(gradients, factor / scale)


def check_finite(
    values: StepValues,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    step: int,
    last_checkpoint: Path | None,
) -> None:
    """Raise if a loss or a gradient is NaN or infinite.

    Args:
        values: Numbers of the step.
        named_parameters: Searched for the first bad gradient, only when there is one.
        step: Number of the step, the first being 1.
        last_checkpoint: Path of the newest good checkpoint.

    Raises:
        NonFiniteError: Names the step, the loss or parameter, and the checkpoint.
    """
    if values.is_finite:
        return
    bad = [
        f"loss {name!r} is {value}"
        for name, value in {**values.losses, "total": values.total}.items()
        if not math.isfinite(value)
    ]
    if not bad:
        named = gather_objects(_name_bad_gradient(named_parameters))
        bad = [next((name for name in named if name), "the global gradient norm overflows")]
    advice = (
        f"the last good checkpoint is {last_checkpoint}" if last_checkpoint else "none was saved"
    )
    raise NonFiniteError(
        f"step {step}: {', '.join(bad)}; parameters were not updated; {advice}. Try a lower "
        "learning rate, a longer warm-up, a smaller max_grad_norm, or precision fp32"
    )


def _name_bad_gradient(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> str | None:
    for name, parameter in named_parameters:
        gradient = parameter.grad
        own = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        if own is not None and not bool(torch.isfinite(own).all()):
            return f"the gradient of {name} is not finite"
    return None


def set_recompute(modules: nn.Module, mode: Recompute) -> int:
    """Say what all modules that can recompute their activations do so with; return their number.

    Parameter names do not change. Losses and gradients are bitwise the same: random draws are
    repeated.

    Args:
        modules: What is trained.
        mode: Of `TrainConfig.recompute`.

    Raises:
        ConfigError: The model has no such module.
    """
    able = [module for module in modules.modules() if hasattr(module, RECOMPUTE_SWITCH)]
    if not able:
        raise ConfigError(
            f"train.recompute = {mode!r}: no module of this model can recompute its activations; "
            "choose none"
        )
    for module in able:
        setattr(module, RECOMPUTE_SWITCH, mode)
    return len(able)
