"""Smaller learning rates for lower blocks, when fine-tuning trained weights (BEiT, appendix)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triptych.train.optim import ParameterGroup

_BLOCK = re.compile(r"(.*blocks)\.(\d+)\.")
_LOWEST = re.compile(r"model\..*(embedding|mask_token)")


def layer_factors(names: Iterable[str], layer_decay: float) -> dict[str, float]:
    """Return the factor on the learning rate of each parameter.

    Of a stack of d blocks, block i has layer_decay^(d - i) for i from 0; embeddings lie below the
    deepest stack; the last norm, a position table of all blocks and heads have 1. As in BEiT.

    Args:
        names: Names of all trainable parameters.
        layer_decay: Between 0 and 1.
    """
    listed = list(names)
    places = {name: match for name in listed if (match := _BLOCK.match(name))}
    depths: dict[str, int] = {}
    for match in places.values():
        depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
    deepest = max(depths.values(), default=0)
    factors = {}
    for name in listed:
        if name in places:
            above = depths[places[name][1]] - int(places[name][2])
        else:
            above = deepest + 1 if _LOWEST.match(name) else 0
        factors[name] = float(layer_decay**above)
    return factors


def split_by_layer(groups: Sequence[ParameterGroup], layer_decay: float) -> list[ParameterGroup]:
    """Split each group by layer; the layers of a group follow each other from below.

    Args:
        groups: Groups with the learning rates of their top.
        layer_decay: Factor from each layer to the one below; 1 leaves the groups as they are.
    """
    if layer_decay == 1:
        return list(groups)
    factors = layer_factors((n for group in groups for n, _ in group.parameters), layer_decay)
    found = []
    for group in groups:
        for factor in sorted({factors[name] for name, _ in group.parameters}):
            own = [pair for pair in group.parameters if factors[pair[0]] == factor]
            name = group.name if factor == 1 else f"{group.name}_x{factor:.4g}"
            found.append(replace(group, name=name, parameters=own, peak_lr=group.peak_lr * factor))
    return found
