"""bf16 or fp32, by measuring on the machine that trains.

Weights, gradients and optimizer state are always fp32; `bf16` runs the forward pass under
`torch.autocast`. On a CPU bf16 can be twice as fast (AMX, AVX512-BF16) or ten times slower
(emulated), and no flag tells which, so a short forward and backward pass is timed in both.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["bf16", "fp32"]

# bf16 rounds to 8 bits: it must win clearly, which also keeps noise from deciding.
_REQUIRED_SPEEDUP = 1.1
_REPEATS = 5


def resolve_precision(
    choice: Literal["auto", "bf16", "fp32"], device: torch.device, modules: nn.Module
) -> Precision:
    """Return the precision to train in; `auto` probes matrices as wide as the model's."""
    if choice != "auto":
        return choice
    return probe_precision(device, width=_common_width(modules))


@functools.cache
@torch.inference_mode(False)  # it measures a backward pass, also for who only infers
def probe_precision(device: torch.device, width: int = 256, rows: int = 1024) -> Precision:
    """Measure whether bf16 is faster than fp32; the answer is kept for the process.

    Args:
        device: Where training will run.
        width: Features of the two matrices of an MLP, which widens them four times.
        rows: Tokens in the measured batch.

    Returns:
        `bf16` if it is at least 1.1 times as fast; on CUDA, if the GPU computes it natively.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((rows, width), (width, 4 * width), (4 * width, width))
    tensors = [torch.randn(shape, generator=generator, device=device) for shape in shapes]
    seconds = {"fp32": float("inf"), "bf16": float("inf")}
    for repeat in range(_REPEATS + 1):  # turn about, so that a busy moment meets both
        for precision in seconds:
            taken = _time_mlp(tensors, precision)
            if repeat > 0:  # the first turn builds kernels
                seconds[precision] = min(seconds[precision], taken)
    return "bf16" if seconds["bf16"] * _REQUIRED_SPEEDUP < seconds["fp32"] else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return the context for a forward pass in a precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _time_mlp(tensors: list[Tensor], precision: str) -> float:
    """Return the seconds of one forward and backward pass through a two-matrix MLP."""
    x, wide, narrow = (tensor.detach().requires_grad_() for tensor in tensors)
    start = time.perf_counter()
    with torch.enable_grad(), autocast(x.device, precision):
        out = nn.functional.gelu(x @ wide) @ narrow  # (rows, width)
    torch.autograd.backward(out.float().sum())
    return time.perf_counter() - start


def _common_width(modules: nn.Module) -> int:
    """Return the most frequent input width of the linear layers, 256 if there are none."""
    widths = Counter(
        module.in_features for module in modules.modules() if isinstance(module, nn.Linear)
    )
    return max(widths, key=lambda width: (widths[width], width)) if widths else 256
