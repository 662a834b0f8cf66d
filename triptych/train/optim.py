"""AdamW, or Muon with it: groups for vision encoder, classifier and the rest, with their decay."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from triptych.core.patterns import is_factor
from triptych.train.config import OptimConfig
from triptych.train.muon import Muon

_NO_DECAY = re.compile(
    r"(?<![a-z])position|(class|modality)_embedding|cls_token|token_type|logit_scale|temperature",
    re.IGNORECASE,
)


_NOT_HIDDEN = re.compile(r"embedding|position|head|projection|token|table|codebook", re.IGNORECASE)
_BLOCK = re.compile(r"(.*blocks)\.(\d+)\.")
_LOWEST = re.compile(r"model\..*(embedding|mask_token)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a learning rate and a weight decay.

    Attributes:
        name: `vision`, `head`, `rest`, `lora` or `lora-vision`, then `_decay` or `_no_decay`; or
            `matrix` or `lora-matrix`.
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
    is_vision: Callable[[str], bool],
) -> list[ParameterGroup]:
    """Put each trainable parameter in exactly one group; groups without parameters are excluded.

    Args:
        named_parameters: As `nn.Module.named_parameters()` gives them: a tied tensor once.
        config: Learning rates and weight decay.
        is_vision: Whether the parameter of a name takes the vision learning rate.
    """
    rates = {
        "vision": config.vision_learning_rate,
        "head": config.learning_rate * config.head_learning_rate_factor,
        "rest": config.learning_rate,
        "lora": config.learning_rate * config.lora_learning_rate_factor,
        "lora-vision": config.vision_learning_rate * config.lora_learning_rate_factor,
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
    muon_rate = config.muon_learning_rate or 0.0
    muon_rates = {"matrix": muon_rate, "lora-matrix": muon_rate * config.lora_learning_rate_factor}
    matrices = {
        name: ParameterGroup(
            name=name, parameters=[], peak_lr=rate, weight_decay=config.weight_decay, muon=True
        )
        for name, rate in muon_rates.items()
    }
    listed = list(named_parameters)
    for name, parameter in listed:
        if not parameter.requires_grad:
            continue
        if config.muon_learning_rate and is_block_matrix(name, parameter):
            part = "lora-matrix" if is_factor(name) else "matrix"
            matrices[part].parameters.append((name, parameter))
        else:
            key = (_part(name, is_vision), has_weight_decay(name, parameter))
            groups[key].parameters.append((name, parameter))
    found = [group for group in (*groups.values(), *matrices.values()) if group.parameters]
    names = [n for n, p in listed if p.requires_grad or n.startswith("model.")]
    return split_by_layer(_split_by_kind(found), config.layer_decay, names)


def _part(name: str, is_vision: Callable[[str], bool]) -> str:
    """Return which learning rate a parameter takes."""
    if is_head_parameter(name):
        return "head"
    if is_factor(name):
        return "lora-vision" if is_vision(name) else "lora"
    return "vision" if is_vision(name) else "rest"


def _split_by_kind(groups: Sequence[ParameterGroup]) -> list[ParameterGroup]:
    """Split each group into sharded and plain parameters: no kernel takes both at once."""
    found = []
    for group in groups:
        for sharded in (False, True):
            own = [pair for pair in group.parameters if isinstance(pair[1], DTensor) == sharded]
            if own:
                found.append(replace(group, parameters=own))
    return found


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


def layer_factors(names: Iterable[str], layer_decay: float) -> dict[str, float]:
    """Return the factor on the learning rate of each parameter.

    Of a stack of d blocks, block i has layer_decay^(d - i) for i from 0; embeddings lie below the
    deepest stack; the last norm, a position table of all blocks and heads have 1. As in BEiT.

    Args:
        names: Names of all parameters of the model, frozen ones too, and of all that are trained.
        layer_decay: Between 0 and 1.
    """
    listed = list(names)
    blocks = {name: match for name in listed if (match := _BLOCK.match(name))}
    depths: dict[str, int] = {}
    for match in blocks.values():
        depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
    deepest = max(depths.values(), default=0)
    factors = {}
    for name in listed:
        if name in blocks:
            above = depths[blocks[name][1]] - int(blocks[name][2])
        else:
            above = deepest + 1 if _LOWEST.match(name) else 0
        factors[name] = float(layer_decay**above)
    return factors


def split_by_layer(
    groups: Sequence[ParameterGroup], layer_decay: float, names: Iterable[str]
) -> list[ParameterGroup]:
    """Split each group by layer; the layers of a group follow each other from below.

    Args:
        groups: Groups with the learning rates of their top.
        layer_decay: Factor from each layer to the one below; 1 leaves the groups as they are.
        names: As for `layer_factors`.
    """
    if layer_decay == 1:
        return list(groups)
    factors = layer_factors(names, layer_decay)
    found = []
    for group in groups:
        for factor in sorted({factors[name] for name, _ in group.parameters}):
            own = [pair for pair in group.parameters if factors[pair[0]] == factor]
            name = group.name if factor == 1 else f"{group.name}_x{factor:.4g}"
            found.append(replace(group, name=name, parameters=own, peak_lr=group.peak_lr * factor))
    return found
