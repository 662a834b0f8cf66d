"""bf16 or fp32, by what the processor can do: one rule to train, evaluate and serve.

Weights and optimizer state are always fp32. `bf16` runs the forward pass under `torch.autocast`;
`bf16-params` also gathers sharded weights in bf16; `fp16` scales the loss. Without instructions for
bf16 it is emulated, up to ten times slower than fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Literal

import torch

from triptych.core.errors import NonFiniteError

Precision = Literal["bf16", "bf16-params", "fp16", "fp32"]
FIRST_SCALE = 2.0**16
"""Of an fp16 loss; the first steps halve it where it is too large."""

PrecisionChoice = Literal["auto"] | Precision


def has_bf16(device: torch.device) -> bool:
    """Return whether a device computes bf16 natively, which no load on the machine changes."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def resolve_precision(choice: PrecisionChoice, device: torch.device) -> Precision:
    """Return the precision to compute in; `auto` is bf16 where the device has instructions."""
    if choice != "auto":
        return choice
    return "bf16" if has_bf16(device) else "fp32"


def explain_precision(choice: str, precision: str, device: torch.device) -> str:
    """Return why a precision was chosen, in a few words."""
    if choice != "auto":
        return "as the config asks"
    if precision == "bf16" and not has_bf16(device):
        return f"as the run began, though this {device.type} only emulates it"
    if precision == "fp32" and has_bf16(device):
        return "as the run began"
    return f"auto: this {device.type} has {'' if precision == 'bf16' else 'no '}bf16 instructions"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return the context for a forward pass in a precision."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision in ("bf16", "fp16"))


class LossScale:
    """The factor on an fp16 loss that keeps small gradients from becoming 0 (arXiv:1710.03740).

    It doubles after `GROWTH_STEPS` steps with finite gradients, and halves after one without, whose
    gradients are dropped. In other precisions it stays 1.
    """

    GROWTH_STEPS = 2000

    def __init__(self, value: float = 1.0) -> None:
        self.value = value
        self._good_steps = 0

    def update(self, *, finite: bool) -> bool:
        """Take note of one step; return whether its gradients can be used.

        Raises:
            NonFiniteError: Gradients are not finite without any scale.
        """
        if not finite:
            if self.value <= 1:
                raise NonFiniteError(
                    "precision fp16: the losses or gradients are not finite at a loss scale of 1; "
                    "lower the learning rate, or train in bf16 or fp32"
                )
            self.value, self._good_steps = self.value / 2, 0
            return False
        self._good_steps += 1
        if self._good_steps == self.GROWTH_STEPS:
            self.value, self._good_steps = self.value * 2, 0
        return True

    def state(self) -> dict[str, float]:
        """Return what a resumed run needs."""
        return {"value": self.value, "good_steps": self._good_steps}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restore what `state` returned."""
        self.value = float(state.get("value", self.value))
        self._good_steps = int(state.get("good_steps", 0))
