"""bf16 or fp32, by what the processor can do: one rule to train, evaluate and serve.

Weights, gradients and optimizer state are always fp32; `bf16` runs the forward pass under
`torch.autocast`. Without instructions for it bf16 is emulated, up to ten times slower than fp32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["bf16", "fp32"]


def has_bf16(device: torch.device) -> bool:
    """Return whether a device computes bf16 natively, which no load on the machine changes."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def resolve_precision(choice: Literal["auto", "bf16", "fp32"], device: torch.device) -> Precision:
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
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
