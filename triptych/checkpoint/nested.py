"""Nested state apart and together: JSON values on one side, tensors by path on the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from triptych.core.errors import CheckpointError

_TENSOR = "__tensor__"


def split_tensors(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return a JSON-able skeleton of `state` and its tensors by path.

    A tensor that occurs twice (tied weights) is listed once. Tuples become lists.

    Args:
        state: Nested dicts with string keys, lists and tuples of tensors and JSON values.

    Returns:
        The skeleton, in which `{"__tensor__": key}` stands for a tensor, and the tensors themselves
        by key, such as "/modules/model.weight": not copies, and without gradient.

    Raises:
        CheckpointError: A value or key that JSON cannot hold, with its path.
    """
    tensors: dict[str, Tensor] = {}
    known: dict[tuple[Any, ...], str] = {}

    def visit(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            key = known.setdefault(_identity(value), path)
            if key == path:
                tensors[key] = value.detach()
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


def join_tensors(skeleton: Any, read: Callable[[str, str], Tensor | None], path: str = "") -> Any:
    """Undo `split_tensors`.

    Args:
        skeleton: As it was returned.
        read: Given a tensor's key and the path where it stands, returns it. The two differ where a
            tensor occurs twice.
        path: Where the skeleton stands; empty for the whole.
    """
    if isinstance(skeleton, dict):
        if skeleton.keys() == {_TENSOR}:
            return read(str(skeleton[_TENSOR]), path)
        return {n: join_tensors(item, read, f"{path}/{n}") for n, item in skeleton.items()}
    if isinstance(skeleton, list):
        return [join_tensors(item, read, f"{path}/{i}") for i, item in enumerate(skeleton)]
    return skeleton


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Return a key that is equal for two views of exactly the same memory."""
    held = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if held.numel() == 0:
        return (id(tensor),)
    layout = (held.data_ptr(), tuple(tensor.shape), held.stride(), held.dtype)
    return (str(held.device), *layout)
