"""The plain way to average gradients over processes, which the engine is compared with."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from triptych.distributed.env import world_size


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
