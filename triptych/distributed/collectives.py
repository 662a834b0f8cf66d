"""Communication between processes; with one process, each function is the identity.

The rules that make several processes train like one on the joined batch: the engine AVERAGES
gradients over the processes; `all_gather_with_grad` sums the gradients from all processes;
a mean over a varying number of items is `mean_over_ranks`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from triptych.core.rng import shared_generator
from triptych.distributed.env import rank, world_size


def all_gather(tensor: Tensor) -> Tensor:
    """Join a tensor's rows over all processes, in the order of ranks, without gradient.

    Args:
        tensor: (B, ...), of the same shape on each process: the trainer gives each one equally many
            rows. Nothing is exchanged to check it, so no process waits for its device.

    Returns:
        (processes * B, ...).
    """
    if world_size() == 1:
        return tensor.detach()
    return _joined(tensor.detach())


def all_gather_with_grad(tensor: Tensor) -> Tensor:
    """Join a tensor's rows over all processes; gradients flow back to the process of each row.

    With gradients averaged over processes, parameters get the gradient of the mean of the
    processes' losses, whether each computes the whole loss or that of its own rows.

    Args:
        tensor: (B, ...), of the same shape on each process.

    Returns:
        (processes * B, ...).
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


def max_over_ranks(value: Tensor) -> Tensor:
    """Return the largest value of any process, without gradient."""
    largest = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


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


@torch.no_grad()
def share_state(module: nn.Module) -> None:
    """Give every process the parameters and buffers of rank 0."""
    if world_size() > 1:
        for tensor in module.state_dict(keep_vars=False).values():
            dist.broadcast(tensor, src=0)


def shared_uniform(*shape: int, device: torch.device) -> Tensor:
    """Return uniform numbers for this process's rows that do not depend on who holds which row.

    They are cut out of numbers for all rows of the joined batch, which every process draws alike.

    Args:
        shape: (B, ...); B is the same on each process.
        device: Where they are drawn and lie.

    Returns:
        (B, ...) float32 in [0, 1).
    """
    everyone = (world_size() * shape[0], *shape[1:])
    numbers = torch.rand(everyone, generator=shared_generator(device), device=device)
    return numbers[rank() * shape[0] :][: shape[0]]


class RowExchange:
    """Which rows of other processes this one needs, and which it gives; each is sent once.

    The plan is made on the host from everybody's wishes: one gather and one wait for the device,
    since an exchange must know its sizes. It then serves several tensors.

    Args:
        wanted: (processes, M) int64, what each process wants: positions among the rows of all
            processes, in the order of ranks.
        size: Rows B that each process has.
        device: Where the rows are.

    Attributes:
        position: (M,) int64, each row that this process wants among [own rows; fetched ones].
    """

    def __init__(self, wanted: Tensor, size: int, device: torch.device) -> None:
        if world_size() == 1:
            self.position = wanted[0].to(device)
            return
        wanted = wanted.cpu()
        total, me = world_size() * size, rank()
        receiver = torch.arange(world_size()).repeat_interleave(wanted.shape[1])
        keys = torch.unique(receiver * total + wanted.flatten())  # sorted by receiver, then owner
        receiver, row = keys // total, keys % total
        owner = row // size
        given = (owner == me) & (receiver != me)
        fetched = row[(receiver == me) & (owner != me)]
        mine = wanted[me]
        local = mine - me * size
        is_own = (local >= 0) & (local < size)
        position = torch.where(is_own, local, size + torch.searchsorted(fetched, mine))
        self.position = position.to(device)
        self._given = (row[given] - me * size).to(device)
        self._gives = torch.bincount(receiver[given], minlength=world_size()).tolist()
        self._takes = torch.bincount(fetched // size, minlength=world_size()).tolist()

    def fetch(self, tensor: Tensor) -> Tensor:
        """Return the fetched rows (R, ...) of a tensor (B, ...); gradients return to their owners.

        Every process must call this at the same time, even one that needs no rows. Shapes may
        differ in B alone, which is the one of the plan.
        """
        if world_size() == 1:
            return tensor[:0]
        found: Tensor = _Exchange.apply(tensor, self._given, self._gives, self._takes)  # type: ignore[no-untyped-call]
        return found

    def extend(self, tensor: Tensor) -> Tensor:
        """Return [own rows; fetched rows], (B + R, ...): what `position` points into."""
        return tensor if world_size() == 1 else torch.cat([tensor, self.fetch(tensor)])


def _joined(tensor: Tensor) -> Tensor:
    joined = tensor.new_empty(world_size() * len(tensor), *tensor.shape[1:])
    gather = getattr(dist, "all_gather_single", None)  # the name from torch 2.13 on
    (gather or dist.all_gather_into_tensor)(joined, tensor.contiguous())
    return joined


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # type: ignore[override]
        return _joined(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        own = grad.new_empty(len(grad) // world_size(), *grad.shape[1:])
        scatter = getattr(dist, "reduce_scatter_single", None)  # the name from torch 2.13 on
        (scatter or dist.reduce_scatter_tensor)(own, grad.contiguous())
        return own


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, tensor: Tensor, given: Tensor, gives: list[int], takes: list[int]
    ) -> Tensor:
        ctx.save_for_backward(given)
        ctx.gives, ctx.takes, ctx.shape = gives, takes, tensor.shape
        return _exchanged(tensor.index_select(0, given), gives, takes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (given,) = ctx.saved_tensors
        returned = _exchanged(grad, ctx.takes, ctx.gives)
        return grad.new_zeros(ctx.shape).index_add_(0, given, returned), None, None, None


def _exchanged(rows: Tensor, gives: list[int], takes: list[int]) -> Tensor:
    """Send `gives[r]` of these rows to each process r, in order, and return what came."""
    flat = rows.reshape(len(rows), math.prod(rows.shape[1:]))
    found = flat.new_empty(sum(takes), flat.shape[1])
    dist.all_to_all_single(found, flat, takes, gives)
    return found.view(sum(takes), *rows.shape[1:])
