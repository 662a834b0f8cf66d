"""Activations that the backward pass computes again instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar, TypeVarTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Inputs = TypeVarTuple("Inputs")
R = TypeVar("R")

Recompute = Literal["none", "selective", "full"]
"""What of a block the backward pass computes again: nothing; all but the products of its linear
layers and the results of its attention; or everything, from the block's input."""

_aten = torch.ops.aten
KEPT: list[Any] = [
    _aten.addmm.default,
    _aten.mm.default,
    _aten.bmm.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
]
"""Operations whose results `selective` keeps. Attention scores (`baddbmm`) are not among them: they
are quadratic in the number of tokens, and torch's own attention kernels compute them again too."""


def run_recomputed(mode: Recompute, run: Callable[[*Inputs], R], *inputs: *Inputs) -> R:
    """Return run(*inputs), of which the backward pass computes again what `mode` says.

    Values and gradients are bitwise those of the call alone: random draws are repeated. One
    exception: under autocast, `selective` adds up the gradients of several uses of a weight in
    fp32, where autocast's cache of converted weights adds them up in half precision.
    """
    if mode == "none" or not torch.is_grad_enabled():
        return run(*inputs)
    found: R
    if mode == "full":
        found = checkpoint(run, *inputs, use_reentrant=False)
    else:
        contexts = partial(create_selective_checkpoint_contexts, KEPT)
        found = checkpoint(_uncached, run, *inputs, use_reentrant=False, context_fn=contexts)
    return found


def _uncached(run: Callable[[*Inputs], R], *inputs: *Inputs) -> R:
    """Return run(*inputs), converting weights in each call of it.

    With autocast's cache the second run, which finds it empty, would convert more than the first,
    and torch could not tell which results are which.
    """
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        return run(*inputs)
    finally:
        torch.set_autocast_cache_enabled(enabled)


def recomputing(
    make: Callable[[Tensor], Tensor], x: Tensor, use: Callable[[Tensor], Tensor]
) -> Tensor:
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
    address, size, dtype = made.data_ptr(), made.numel(), made.dtype
    source = x.detach()

    def pack(tensor: Tensor) -> Tensor | torch.Size:
        same = tensor.data_ptr() == address and tensor.numel() == size and tensor.is_contiguous()
        return tensor.shape if same and tensor.dtype == dtype else tensor.detach()

    def unpack(saved: Tensor | torch.Size) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        with torch.no_grad():
            return make(source).to(dtype).view(saved)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return use(made)
