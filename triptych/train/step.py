"""The parts of one optimizer step between the loader and the optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from triptych.core.errors import ConfigError, NonFiniteError
from triptych.distributed.collectives import all_reduce_mean
from triptych.train.task import Task


@dataclass(frozen=True, slots=True)
class StepValues:
    """Numbers of one step, on the host.

    Attributes:
        losses: Unweighted losses by objective, means over the micro-batches.
        total: The weighted sum that was minimised.
        grad_norm: Global L2 norm of the gradients before clipping.
    """

    losses: dict[str, float]
    total: float
    grad_norm: float


def check_batch_keys(batch_keys: frozenset[str], batch: Mapping[str, Tensor]) -> None:
    """Raise a ConfigError if the loader does not yield what the task reads."""
    missing = sorted(batch_keys - batch.keys())
    if missing:
        raise ConfigError(
            f"the task reads {missing}, which the batch lacks; it holds {sorted(batch)}: "
            "use the collator that belongs to this task"
        )


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the batch on a device; copies from pinned memory do not wait."""
    return {key: tensor.to(device, non_blocking=True) for key, tensor in batch.items()}


def backward_micro_batch(
    task: Task,
    batch: Mapping[str, Tensor],
    weights: Mapping[str, float],
    *,
    share: float,
    context: AbstractContextManager[None],
) -> dict[str, Tensor]:
    """Add a micro-batch's gradient of `share * sum(weight * loss)` to the parameters.

    Args:
        task: What is trained.
        batch: A micro-batch on the training device.
        weights: Weights above zero by objective; the task is asked for exactly these.
        share: Fraction of the step that this micro-batch is, 1 / accumulate.
        context: Autocast for the forward pass.

    Returns:
        The unweighted losses, detached, and `total`, their weighted sum.
    """
    with context:
        losses = task.losses(batch, active=frozenset(weights))
    missing = sorted(weights.keys() - losses.keys())
    if missing:
        raise ConfigError(f"the task returned no loss for {missing}; it returned {sorted(losses)}")
    total = torch.stack([weight * losses[name].float() for name, weight in weights.items()]).sum()
    torch.autograd.backward(total * share)
    return {name: loss.detach().float() for name, loss in losses.items()} | {
        "total": total.detach()
    }


def clip_gradients(
    parameters: Iterable[nn.Parameter], max_norm: float | None, *, per_parameter: bool = False
) -> Tensor:
    """Scale gradients down to a norm and return the global norm before, without waiting for it.

    Gradients of a non-finite norm are left as they are, so that the finite check can still tell
    which parameter caused it.

    Args:
        parameters: What is trained.
        max_norm: Norm above which gradients are scaled down; None leaves them as they are.
        per_parameter: Whether `max_norm` bounds each parameter's gradient, not the global norm.
    """
    with_grad = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [p.grad for p in with_grad if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm is not None and per_parameter:
        _clip_each(gradients, max_norm, norm)
    elif max_norm is not None:
        safe_norm = torch.where(torch.isfinite(norm), norm, torch.zeros_like(norm))
        torch.nn.utils.clip_grads_with_norm_(with_grad, max_norm, safe_norm)
    return norm


def _clip_each(gradients: list[Tensor], max_norm: float, norm: Tensor) -> None:
    """Scale each gradient down to `max_norm`, unless the global norm is not finite."""
    own = torch.stack([n.to(norm.device) for n in torch._foreach_norm(gradients)])
    factors = (max_norm / own.clamp(min=max_norm)).where(torch.isfinite(norm), 1.0)
    torch._foreach_mul_(gradients, list(factors.unbind()))


def read_values(micro_losses: list[dict[str, Tensor]], grad_norm: Tensor) -> StepValues:
    """Bring losses and norm, means over processes, to the host: a step's only wait."""
    names = list(micro_losses[0])
    means = [torch.stack([losses[name] for losses in micro_losses]).mean() for name in names]
    *values, norm = all_reduce_mean(torch.stack([*means, grad_norm.float()])).tolist()
    losses = dict(zip(names, values, strict=True))
    return StepValues(losses=losses, total=losses.pop("total"), grad_norm=norm)


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
    bad = [
        f"loss {name!r} is {value}"
        for name, value in {**values.losses, "total": values.total}.items()
        if not math.isfinite(value)
    ]
    if not bad and math.isfinite(values.grad_norm):
        return
    if not bad:
        bad = [_name_bad_gradient(named_parameters)]
    advice = (
        f"the last good checkpoint is {last_checkpoint}" if last_checkpoint else "none was saved"
    )
    raise NonFiniteError(
        f"step {step}: {', '.join(bad)}; parameters were not updated; {advice}. Try a lower "
        "learning rate, a longer warm-up, a smaller max_grad_norm, or precision fp32"
    )


def _name_bad_gradient(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    for name, parameter in named_parameters:
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return f"the gradient of {name} is not finite"
    return "the global gradient norm overflows"
