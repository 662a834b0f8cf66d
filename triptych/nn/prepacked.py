"""Linear layers whose weights lie as the processor reads them, for few rows at a time.

A product of a few rows with a large matrix is bound by reading the matrix. torch's CPU kernel for
float32 first copies it into another order, in every call; here oneDNN does that once. The layers of
a decoder that generates by token then take half the time or less (benchmarks/speed/beam.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from triptych.nn.heads import VocabularyHead

M = TypeVar("M", bound=nn.Module)

MAX_ROWS = 64
"""With more rows the product itself takes the time."""


def can_prepack(module: nn.Module) -> bool:
    """Say whether a module's layers can be prepacked: float32 on a CPU, and nothing to train.

    Modules that torch shards (`fully_shard` gives them `unshard`) cannot be copied.
    """
    parameter = next(module.parameters())
    return (
        parameter.device.type == "cpu"
        and parameter.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and not any(hasattr(part, "unshard") for part in module.modules())
    )


_twins: WeakKeyDictionary[nn.Module, tuple[object, nn.Module]] = WeakKeyDictionary()


def kept_twin(module: M, build: Callable[[], M]) -> M:
    """Return the prepacked copy of a module that an earlier call made, or a new one.

    Args:
        module: In place of which the copy is wanted. Where its weights were changed since, the copy
            is made again.
        build: Makes the copy.
    """
    state = _state_of(module)
    kept = _twins.get(module)
    if kept is not None and state is not None and kept[0] == state:
        return kept[1]  # type: ignore[return-value]
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
    return versions, some.tolist()


def prepack(module: M) -> M:
    """Return a copy for inference that computes the same, to rounding.

    The copy holds the linear layers' weights a second time and shares everything else; it does not
    see later changes of the weights.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    twin = copy.deepcopy(module, shared)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, _PrepackedLinear(child.weight, child.bias))
    return twin


def prepack_head(head: VocabularyHead, word_table: Tensor) -> nn.Module:
    """Return a head that `prepack` made with its word table, which its `forward` ignores."""
    return _PrepackedHead(head, word_table if head.weight is None else head.weight)


class _PrepackedLinear(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias  # read by layers that fold something into them
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]
            x, self._packed, self.bias, "none", [], ""
        )


class _PrepackedHead(nn.Module):
    def __init__(self, head: VocabularyHead, word_table: Tensor) -> None:
        super().__init__()
        self.head = head
        self.words = _PrepackedLinear(word_table, head.bias)

    def forward(self, x: Tensor, word_table: Tensor | None = None) -> Tensor:
        del word_table
        return self.words(self.head.hidden(x))  # type: ignore[no-any-return]
