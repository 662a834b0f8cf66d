"""Save memory: recompute the activations of blocks in the backward pass."""

from __future__ import annotations

from torch import nn

from triptych.core.errors import ConfigError

SWITCH = "activation_checkpointing"
"""Attribute of a module that can recompute its activations, such as `nn.block.Block`."""


def enable_activation_checkpointing(modules: nn.Module) -> int:
    """Make every module that can recompute its activations do so, and return their number.

    Parameter names do not change. Losses and gradients are bitwise the same: random draws are
    repeated.

    Args:
        modules: What is trained.

    Raises:
        ConfigError: The model has no such module.
    """
    able = [module for module in modules.modules() if hasattr(module, SWITCH)]
    if not able:
        raise ConfigError(
            "no module of this model can recompute its activations: leave activation_checkpointing "
            "off"
        )
    for module in able:
        setattr(module, SWITCH, True)
    return len(able)
