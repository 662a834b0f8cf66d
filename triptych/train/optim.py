"""AdamW, or Muon with it: groups for vision encoder, classifier and the rest, with their decay."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn

from triptych.train.config import OptimConfig
from triptych.train.layer_decay import split_by_layer
from triptych.train.muon import Muon

_NO_DECAY = re.compile(
    r"(?<![a-z])position|(class|modality)_embedding|cls_token|token_type|logit_scale|temperature",
    re.IGNORECASE,
)


_NOT_HIDDEN = re.compile(r"embedding|position|head|projection|token|table|codebook", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a learning rate and a weight decay.

    Attributes:
        name: `vision`, `head` or `rest`, then `_decay` or `_no_decay`; or `matrix`.
        parameters: (name, parameter) pairs.
        peak_lr: Learning rate at the end of warm-up.
        weight_decay: Decoupled weight decay.
        muon: Whether Muon trains them.
    """

    name: str
    parameters: list[tuple[str, nn.Parameter]]
    peak_lr: float
    weight_decay: float
    muon: bool = False


def is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter is a matrix between hidden states, which Muon may train.

    Tables of words and positions, output heads and projections to an embedding are none.
    """
    return parameter.ndim == 2 and _NOT_HIDDEN.search(name) is None


def is_vision_parameter(name: str) -> bool:
    """Return whether a parameter belongs to the vision encoder, by the name of its module."""
    return name.startswith("model.visual_encoder.")


def is_head_parameter(name: str) -> bool:
    """Return whether a parameter belongs to a task's classifier, by the name of its module."""
    return name.startswith("head.")


def has_weight_decay(name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter decays: a matrix that embeds no position, class token or type.

    Norm scales, biases, layer scales and the temperature have at most one dimension.
    """
    return parameter.ndim > 1 and _NO_DECAY.search(name) is None


def group_parameters(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimConfig,
    is_vision: Callable[[str], bool] = is_vision_parameter,
) -> list[ParameterGroup]:
    """Put each trainable parameter in exactly one group; groups without parameters are left out.

    Args:
        named_parameters: As `nn.Module.named_parameters()` gives them: a tied tensor once.
        config: Learning rates and weight decay.
        is_vision: Whether the parameter of a name takes the vision learning rate.
    """
    rates = {
        "vision": config.vision_learning_rate,
        "head": config.learning_rate * config.head_learning_rate_factor,
        "rest": config.learning_rate,
    }
    groups = {
        (part, decay): ParameterGroup(
            name=part + ("_decay" if decay else "_no_decay"),
            parameters=[],
            peak_lr=rate,
            weight_decay=config.weight_decay if decay else 0.0,
        )
        for part, rate in rates.items()
        for decay in (True, False)
    }
    matrices = ParameterGroup(
        name="matrix",
        parameters=[],
        peak_lr=config.muon_learning_rate or 0.0,
        weight_decay=config.weight_decay,
        muon=True,
    )
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        if config.muon_learning_rate and is_block_matrix(name, parameter):
            matrices.parameters.append((name, parameter))
        else:
            part = "head" if is_head_parameter(name) else "vision" if is_vision(name) else "rest"
            key = (part, has_weight_decay(name, parameter))
            groups[key].parameters.append((name, parameter))
    found = [group for group in (*groups.values(), matrices) if group.parameters]
    return split_by_layer(found, config.layer_decay)


def build_optimizer(groups: list[ParameterGroup], config: OptimConfig) -> torch.optim.AdamW:
    """Return a fused AdamW, or Muon; each group carries `name`, `peak_lr` and `param_names`."""
    plain = [
        {
            "params": group.parameters,
            "name": group.name,
            "peak_lr": group.peak_lr,
            "lr": group.peak_lr,
            "weight_decay": group.weight_decay,
            "muon": group.muon,
        }
        for group in groups
    ]
    options: dict[str, Any] = {"betas": config.betas, "eps": config.eps, "fused": True}
    if config.muon_learning_rate is None:
        return torch.optim.AdamW(plain, **options)
    return Muon(plain, momentum=config.muon_momentum, **options)


def group_table(groups: list[ParameterGroup]) -> Table:
    """Return a table of the groups for the terminal: tensors, numbers, peak rate, decay."""
    table = Table("group", "tensors", "parameters", "peak learning rate", "weight decay")
    for group in groups:
        size = sum(parameter.numel() for _, parameter in group.parameters)
        table.add_row(
            group.name,
            str(len(group.parameters)),
            f"{size:,}",
            f"{group.peak_lr:g}",
            f"{group.weight_decay:g}",
        )
    return table
