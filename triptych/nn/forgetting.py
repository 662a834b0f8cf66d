"""Cheap intermediate results that the backward pass computes again instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

R = TypeVar("R")


def forget(make: Callable[[Tensor], Tensor], x: Tensor, use: Callable[[Tensor], Tensor]) -> Tensor:
    """Return use(make(x)); the backward pass calls make(x) again instead of keeping its result.

    For what costs little to compute and much to keep, such as a norm or an activation whose own
    backward pass keeps x anyhow. Values and gradients are exactly those of use(make(x)).

    Args:
        make: Without randomness; run once more in the backward pass.
        x: Its input, which is kept.
        use: Whatever it saves for its backward pass is kept, but for make(x) itself.
    """
    made = make(x)
    if not (torch.is_grad_enabled() and made.requires_grad):
        return use(made)
    if torch.is_autocast_enabled(x.device.type):
        made = made.to(torch.get_autocast_dtype(x.device.type))
    place, size, dtype = made.data_ptr(), made.numel(), made.dtype
    source = x.detach()

    def pack(tensor: Tensor) -> Tensor | torch.Size:
        same = tensor.data_ptr() == place and tensor.numel() == size and tensor.is_contiguous()
        return tensor.shape if same and tensor.dtype == dtype else tensor.detach()

    def unpack(saved: Tensor | torch.Size) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        with torch.no_grad():
            return make(source).to(dtype).view(saved)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return use(made)
