"""Communication between processes; with one process, each function is the identity.

The rules that make several processes train like one on the joined batch: the engine AVERAGES
gradients over the processes; `all_gather_with_grad` sums the gradients from all processes;
a mean over a varying number of items is `mean_over_ranks`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.distributed.env import rank, world_size


def all_gather(tensor: Tensor) -> Tensor:
    """Join a tensor's rows over all processes, in the order of ranks, without gradient.

    Args:
        tensor: (B, ...), the same on each process except for B.

    Returns:
        (sum of B, ...).
    """
    if world_size() == 1:
        return tensor.detach()
    return _gathered(tensor.detach())[0]


def all_gather_with_grad(tensor: Tensor) -> Tensor:
    """Join a tensor's rows over all processes; gradients flow back to the process of each row.

    With gradients averaged over processes, parameters get the gradient of the mean of the
    processes' losses, whether each computes the whole loss or that of its own rows.

    Args:
        tensor: (B, ...), the same on each process except for B.

    Returns:
        (sum of B, ...).
    """
    if world_size() == 1:
        return tensor
    joined: Tensor = _Gather.apply(tensor)  # type: ignore[no-untyped-call]
    return joined


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum over processes, without gradient."""
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Return the mean over processes, without gradient."""
    return all_reduce_sum(tensor) / world_size() if world_size() > 1 else tensor.detach()


def mean_over_ranks(total: Tensor, count: Tensor) -> Tensor:
    """Return a sum over this process's items as its part of the mean over all items.

    The average of the results over processes is the mean over all items, however unequally they
    are spread; so is that of their gradients.

    Args:
        total: Scalar, sum over this process's items.
        count: Scalar, number of this process's items.

    Returns:
        Scalar: total * world size / global count; 0 with its graph when no process has an item.
    """
    global_count = all_reduce_sum(count).clamp(min=1)
    return total * world_size() / global_count if world_size() > 1 else total / global_count


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on any process."""
    return any(gather_objects(flag))


def from_main(value: Any) -> Any:
    """Return the value that the process of rank 0 has; it must be picklable."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Return every process's value, in the order of ranks."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def barrier() -> None:
    """Wait until all processes have called this."""
    if world_size() > 1:
        dist.barrier()


@torch.no_grad()
def share_state(module: nn.Module) -> None:
    """Give every process the parameters and buffers of rank 0."""
    if world_size() > 1:
        for tensor in module.state_dict(keep_vars=False).values():
            dist.broadcast(tensor, src=0)


def first_rows(tensor: Tensor) -> Tensor:
    """Return the index of each process's first row among all rows, then the number of rows.

    Args:
        tensor: (B, ...); B may differ from process to process.

    Returns:
        (processes + 1,) int64.
    """
    lengths = all_gather(torch.tensor([len(tensor)], device=tensor.device))
    return F.pad(lengths.cumsum(0), (1, 0))


def all_gather_padded(tensor: Tensor) -> Tensor:
    """Join the rows of all processes, padded with zeros to the longest row of any.

    Args:
        tensor: (B, L); B and L may differ from process to process.

    Returns:
        (sum of B, longest L), without gradient.
    """
    lengths = all_gather(torch.tensor([tensor.shape[1]], device=tensor.device))
    return all_gather(F.pad(tensor, (0, int(lengths.max()) - tensor.shape[1])))


def fetch_rows(tensor: Tensor, index: Tensor) -> Tensor:
    """Return rows that lie on any process; only requested rows are sent, each once.

    Every process must call this at the same time, even one that needs no rows.

    Args:
        tensor: (B, ...), this process's rows; without gradient.
        index: (M,) int64, positions among the rows of all processes, in the order of ranks.

    Returns:
        (M, ...).
    """
    first = first_rows(tensor)
    distinct, position = torch.unique(index, return_inverse=True)  # sorted, so by owner
    if world_size() == 1:
        return tensor.detach().index_select(0, index)
    wanted = _split_by(all_gather(distinct), first_rows(distinct))
    own = slice(int(first[rank()]), int(first[rank() + 1]))
    asked = [w[(w >= own.start) & (w < own.stop)] - own.start for w in wanted]
    given = tensor.detach().index_select(0, torch.cat(asked)).flatten(1)
    owner = torch.bucketize(distinct, first[1:], right=True)
    counts = torch.bincount(owner, minlength=world_size()).tolist()
    fetched = given.new_empty(len(distinct), given.shape[1])
    dist.all_to_all_single(fetched, given, counts, [len(rows) for rows in asked])
    return fetched.unflatten(1, tensor.shape[1:]).index_select(0, position)  # type: ignore[no-any-return, no-untyped-call]


def _gathered(tensor: Tensor) -> tuple[Tensor, list[int]]:
    """Return the joined rows and each process's number of rows; rows are padded for transport."""
    size = torch.tensor([len(tensor)], device=tensor.device)
    sizes = [torch.zeros_like(size) for _ in range(world_size())]
    dist.all_gather(sizes, size)
    lengths = [int(s) for s in sizes]
    longest = max(lengths)
    padded = tensor.new_zeros((longest, *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)]), lengths


def _split_by(rows: Tensor, first: Tensor) -> list[Tensor]:
    return [rows[a:b] for a, b in pairwise(first.tolist())]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # type: ignore[override]
        joined, lengths = _gathered(tensor.contiguous())
        ctx.own = slice(sum(lengths[: rank()]), sum(lengths[: rank() + 1]))
        return joined

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.own]
