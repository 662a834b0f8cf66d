"""Weights for inference: rounded once, and in a decoder's copy as the processor reads them.

A product of a few rows with a large matrix is bound by reading the matrix. torch's CPU kernel for
float32 first copies it into another order, and autocast to bf16 first rounds it, both in every
call; here that is done once. The layers of a decoder that generates by token then take half the
time or less (benchmarks/speed/beam.py, benchmarks/speed/captions.py). oneDNN's kernels also give a
row the same numbers whatever rows stand beside it, from two rows on, so that a text does not depend
on the texts that are generated with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.nn.heads import VocabularyHead

M = TypeVar("M", bound=nn.Module)


def round_linear_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Round the weights of linear layers in place, for a forward pass in autocast to that type.

    It computes the same as before: where nothing is trained, autocast rounds each weight at every
    use, which at base size takes as long as a seventh of encoding an image. Biases, tables, norms
    and convolutions stay as they are.

    Args:
        module: Not to be trained, nor saved.
        dtype: Of autocast.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.weight.data = part.weight.data.to(dtype)


def packed_dtype(module: nn.Module) -> torch.dtype | None:
    """Return the type that a copy of a module would compute in; None where none would help.

    It helps where nothing is trained and the weights are float32: on a CPU with oneDNN; elsewhere
    in autocast, which the copy saves its rounding. Modules that torch shards (`fully_shard` gives
    them `unshard`) cannot be copied.
    """
    parameter = next(module.parameters())
    kind = parameter.device.type
    if parameter.dtype != torch.float32 or torch.is_grad_enabled():
        return None
    if any(hasattr(part, "unshard") for part in module.modules()):
        return None
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    usable = {torch.float32, torch.bfloat16} if _has_onednn(kind) else set()
    return dtype if dtype in usable or (kind != "cpu" and dtype != torch.float32) else None


def _has_onednn(device_type: str) -> bool:
    return (
        device_type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


_twins: WeakKeyDictionary[nn.Module, tuple[object, nn.Module]] = WeakKeyDictionary()


def kept_twin(module: M, build: Callable[[], M]) -> M:
    """Return the prepacked copy of a module that an earlier call made, or a new one.

    A module has one copy at a time, of one type of numbers.

    Args:
        module: In place of which the copy is wanted. Where its weights were changed since, or the
            copy is of another type, it is made again.
        build: Makes the copy.
    """
    state = _state_of(module)
    kept = _twins.get(module)
    if kept is not None and state is not None and kept[0] == state:
        return kept[1]  # type: ignore[return-value]
    _twins.pop(module, None)  # first: two copies would be in memory at once
    twin = build()
    if state is not None:
        _twins[module] = state, twin
    return twin


def _state_of(module: nn.Module) -> object:
    """Return what changes when the weights do: address, number of changes, and a few numbers."""
    parameters = list(module.parameters())
    if any(parameter.is_inference() for parameter in parameters):
        return None  # their changes are not counted
    some = torch.stack([parameter.detach().flatten()[:4].sum() for parameter in parameters])
    versions = [(parameter.data_ptr(), parameter._version) for parameter in parameters]
    return versions, some.tolist(), packed_dtype(module), module.training


def prepack(module: M) -> M:
    """Return a copy for inference that computes the same, to rounding, in the type of autocast.

    The copy holds the linear layers' weights a second time, in that type, and shares everything
    else; it does not see later changes of the weights.
    """
    dtype = packed_dtype(module) or torch.float32
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    twin = copy.deepcopy(module, shared)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, _PrepackedLinear(child.weight, child.bias, dtype))
    return twin


def prepack_head(head: VocabularyHead, word_table: Tensor) -> nn.Module:
    """Return a head of a copy with its word table, which its `forward` ignores."""
    return _PrepackedHead(head, word_table if head.weight is None else head.weight)


class _PrepackedLinear(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias  # read by layers that fold something into them
        packed, self._bias = weight.detach().to(dtype), None if bias is None else bias.to(dtype)
        self._dtype, self._on_cpu = dtype, weight.device.type == "cpu"
        self._packed = torch.ops.mkldnn._reorder_linear_weight(packed) if self._on_cpu else packed

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self._dtype)
        if not self._on_cpu:
            return F.linear(x, self._packed, self._bias)
        if x.numel() > x.shape[-1]:
            return self._product(x)
        # one row alone is rounded otherwise than the same row beside others
        return self._product(x.reshape(1, -1).expand(2, -1))[:1].view(*x.shape[:-1], -1)

    def _product(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]
            x, self._packed, self._bias, "none", [], ""
        )


class _PrepackedHead(nn.Module):
    def __init__(self, head: VocabularyHead, word_table: Tensor) -> None:
        super().__init__()
        self.head = head
        dense = head.dense
        dtype = dense._dtype if isinstance(dense, _PrepackedLinear) else word_table.dtype
        self.words = _PrepackedLinear(word_table, head.bias, dtype)

    def forward(self, x: Tensor, word_table: Tensor | None = None) -> Tensor:
        del word_table
        return self.words(self.head.hidden(x))  # type: ignore[no-any-return]
