"""What a tensor on a device holds, known on the host without waiting for the device.

A size that depends on what a mask holds is needed on the host, and to ask a GPU for it waits until
the GPU has done all that it was told to. Masks of a batch come from the host: their copies there,
their twins, answer at once. A tensor of a CPU is its own twin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_twins: Any = WeakTensorKeyDictionary()  # of tensors, to tensors


def keep_twin(tensor: Tensor, twin: Tensor) -> Tensor:
    """Return the tensor, of which `on_host` gives the twin as long as it lives.

    Args:
        tensor: On any device.
        twin: On the CPU, of the same shape and values, or with the same True entries where only
            masks are made of it.
    """
    if tensor is not twin:
        _twins[tensor] = twin
    return tensor


def on_host(tensor: Tensor) -> Tensor:
    """Return the tensor's twin; one that has none is copied, which waits for its device."""
    twin: Tensor | None = _twins.get(tensor)
    return tensor.cpu() if twin is None else twin


def alike(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Return a function of tensors; where all have twins, the result has one, too."""
    result = function(*tensors)
    twins = [_twins.get(tensor) for tensor in tensors]
    if all(twin is not None for twin in twins):
        keep_twin(result, function(*twins))
    return result


def select(x: Tensor, mask: Tensor) -> Tensor:
    """Return `x[mask]`, whose size the mask's twin tells.

    Args:
        x: (..., D), or without D.
        mask: bool, of the leading dimensions of `x`.
    """
    places = on_host(mask).flatten().nonzero()[:, 0].to(mask.device, non_blocking=True)
    return x.flatten(0, mask.ndim - 1).index_select(0, places)
