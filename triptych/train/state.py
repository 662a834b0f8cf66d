"""The state that a run needs to resume bitwise, as one nested dict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from triptych.core.errors import CheckpointError
from triptych.distributed.engine import shard_like
from triptych.train.task import StatefulTask, Task


def capture_state(task: Task, optimizer: Optimizer) -> dict[str, Any]:
    """Return modules, optimizer and the task's own state.

    The tensors are the live ones, DTensors where they are sharded: store or copy them before the
    next step. There is no random state: that of a step follows from seed, step and rank
    (`core.rng.seed_step`).
    """
    return {
        "modules": dict(task.modules.state_dict()),
        "optimizer": _optimizer_state(optimizer),
        "task": task.extra_state() if isinstance(task, StatefulTask) else {},
    }


def division(task: Task, optimizer: Optimizer) -> Callable[[str], Tensor | None]:
    """Return how a checkpoint's tensors are divided among the processes that train now.

    Returns:
        From the path of a tensor in the state to the tensor that is restored from it, or to the
        parameter that a moment belongs to; None for a path that has none.
    """
    own = {"modules": task.modules.state_dict(), "optimizer": _named_parameters(optimizer)}

    def like(path: str) -> Tensor | None:
        kind, name = [*path.split("/"), "", ""][1:3]
        return own.get(kind, {}).get(name)

    return like


def restore_state(state: dict[str, Any], task: Task, optimizer: Optimizer) -> None:
    """Restore what `capture_state` returned.

    Raises:
        CheckpointError: The checkpoint belongs to another model: names or shapes differ.
    """
    load_modules(task.modules, state["modules"])
    _load_optimizer(optimizer, state["optimizer"])
    if isinstance(task, StatefulTask):
        task.load_extra_state(state["task"])


def load_modules(modules: nn.Module, saved: dict[str, Any]) -> None:
    """Restore the `modules` of a checkpoint.

    Raises:
        CheckpointError: They belong to another model: names or shapes differ.
    """
    present = modules.state_dict()
    for kind, names in (
        ("lacks", present.keys() - saved.keys()),
        ("holds an unknown", saved.keys() - present.keys()),
    ):
        if names:
            raise CheckpointError(
                f"the checkpoint {kind} {min(names)!r} ({len(names)} such names): "
                "resume with the configuration that the run began with"
            )
    for name, value in present.items():
        if isinstance(value, Tensor) and value.shape != saved[name].shape:
            raise CheckpointError(
                f"{name} is {tuple(saved[name].shape)} in the checkpoint and {tuple(value.shape)} "
                "in the model: resume with the configuration that the run began with"
            )
    modules.load_state_dict({name: _like(saved[name], value) for name, value in present.items()})


def _named_parameters(optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }


def _optimizer_state(optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    """Return AdamW's state by parameter name; learning rates follow from the step."""
    return {
        name: dict(optimizer.state[parameter])
        for name, parameter in _named_parameters(optimizer).items()
        if parameter in optimizer.state
    }


def _load_optimizer(optimizer: Optimizer, saved: dict[str, dict[str, Any]]) -> None:
    parameters = _named_parameters(optimizer)
    unknown = sorted(saved.keys() - parameters.keys())
    if unknown:
        raise CheckpointError(
            f"the checkpoint's optimizer holds {unknown[0]!r}, which is not trained now "
            f"({len(unknown)} such names): resume with the configuration that the run began with"
        )
    optimizer.state.clear()
    for name, entries in saved.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            key: _like(value, parameter) for key, value in entries.items()
        }


def _like(value: Any, parameter: Tensor) -> Any:
    """Return a saved moment in the memory layout of its parameter, as the fused kernel needs."""
    if not isinstance(value, Tensor):
        return value
    if value.shape != parameter.shape:  # the step counter
        return value.to(parameter.device)
    own = value if isinstance(value, DTensor) else shard_like(value, parameter)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(own)
