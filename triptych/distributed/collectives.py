"""What processes tell each other; with one process, each of these is the identity.

The rules that make several processes train like one on the joined batch: the trainer AVERAGES
gradients over the processes; `all_gather_with_grad` sums the gradients that all of them send back;
a mean over a varying number of items is `mean_over_ranks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from triptych.distributed.env import rank, world_size


def all_gather(tensor: Tensor) -> Tensor:
    """Join a tensor's rows over all processes, in the order of ranks, without gradient.

    Args:
        tensor: (B, ...), the same on each process but for B.

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
        tensor: (B, ...), the same on each process but for B.

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
    """Return a sum over this process's items as its part of the mean over everybody's items.

    The average of the results over processes is the mean over all items, however unequally they
    are spread; so is that of their gradients.

    Args:
        total: Scalar, sum over this process's items.
        count: Scalar, how many they are.

    Returns:
        Scalar: total * world size / global count; 0 with its graph when nobody has an item.
    """
    everybody = all_reduce_sum(count).clamp(min=1)
    return total * world_size() / everybody if world_size() > 1 else total / everybody


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
    """Wait until all processes are here."""
    if world_size() > 1:
        dist.barrier()


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over processes, in one message.

    A parameter without a gradient here counts as 0, and gets one if any process has one.

    Args:
        parameters: The same ones in the same order on each process.
    """
    if world_size() == 1 or not parameters:
        return
    device = parameters[0].device
    has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=device)
    dist.all_reduce(has, op=dist.ReduceOp.MAX)
    chosen = [p for p, any_has in zip(parameters, has.tolist(), strict=True) if any_has]
    for parameter in chosen:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.flatten().float() for p in chosen if p.grad is not None])
    dist.all_reduce(flat)
    flat /= world_size()
    parts = torch.split(flat, [p.numel() for p in chosen])
    for parameter, part in zip(chosen, parts, strict=True):
        assert parameter.grad is not None
        parameter.grad.copy_(part.view_as(parameter.grad))


@torch.no_grad()
def share_state(module: nn.Module) -> None:
    """Give every process the parameters and buffers of rank 0."""
    if world_size() > 1:
        for tensor in module.state_dict(keep_vars=False).values():
            dist.broadcast(tensor, src=0)


def _gathered(tensor: Tensor) -> tuple[Tensor, list[int]]:
    """Return the joined rows and how many each process gave; rows are padded on the way."""
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
