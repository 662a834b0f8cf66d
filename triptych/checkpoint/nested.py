"""Nested state apart into tensors (safetensors) and a JSON skeleton, and together again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from triptych.core.errors import CheckpointError

_TENSOR = "__tensor__"


def split_tensors(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return a JSON-able skeleton of `state` and its tensors by path.

    A tensor that occurs twice (tied weights) is stored once. Tuples become lists.

    Args:
        state: Nested dicts with string keys, lists and tuples of tensors and JSON values.

    Returns:
        The skeleton, in which `{"__tensor__": key}` stands for a tensor, and contiguous CPU
        tensors by key, none of which shares memory with another.

    Raises:
        CheckpointError: A value or key that JSON cannot hold, with its path.
    """
    tensors: dict[str, Tensor] = {}
    known: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()

    def visit(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            key = known.setdefault(_identity(value), path)
            if key == path:
                copy = _detached_copy(value)
                if copy.untyped_storage().data_ptr() in storages:  # another view of a stored one
                    copy = copy.clone()
                storages.add(copy.untyped_storage().data_ptr())
                tensors[key] = copy
            return {_TENSOR: key}
        if isinstance(value, dict):
            for name in value:
                if not isinstance(name, str) or name == _TENSOR:
                    raise CheckpointError(f"cannot save {path or 'state'}: key {name!r}")
            return {name: visit(item, f"{path}/{name}") for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [visit(item, f"{path}/{index}") for index, item in enumerate(value)]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise CheckpointError(f"cannot save {path}: a {type(value).__name__} is not JSON")

    return visit(state, ""), tensors


def join_tensors(skeleton: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `split_tensors`.

    Raises:
        CheckpointError: The skeleton names a tensor that is not there.
    """
    if isinstance(skeleton, dict):
        if skeleton.keys() == {_TENSOR}:
            if skeleton[_TENSOR] not in tensors:
                raise CheckpointError(f"tensor {skeleton[_TENSOR]!r} is missing")
            return tensors[skeleton[_TENSOR]]
        return {name: join_tensors(item, tensors) for name, item in skeleton.items()}
    if isinstance(skeleton, list):
        return [join_tensors(item, tensors) for item in skeleton]
    return skeleton


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Return a key that is equal for two views of exactly the same memory."""
    if tensor.numel() == 0:
        return (id(tensor),)
    layout = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
    return (str(tensor.device), *layout)


def _detached_copy(tensor: Tensor) -> Tensor:
    """Return a contiguous CPU tensor that owns all of its memory, and no more."""
    tensor = tensor.detach().to("cpu").contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
