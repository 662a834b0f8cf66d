"""Memory for time: activations of blocks are computed again in the backward pass."""

from __future__ import annotations

from torch import nn

from triptych.core.errors import ConfigError

SWITCH = "activation_checkpointing"
"""Attribute of a module that can forget its activations, such as `nn.block.Block`."""


def enable_activation_checkpointing(modules: nn.Module) -> int:
    """Let every module that can keep only its inputs, and return how many do.

    Names of parameters stay as they are. Losses and gradients are bitwise the same: random draws
    are repeated as they were.

    Args:
        modules: What is trained.

    Raises:
        ConfigError: No module can.
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
