"""Rows that processes fetch from each other: each row that somebody wants moves once to him."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from triptych.distributed.collectives import all_gather
from triptych.distributed.env import rank, world_size


def first_rows(tensor: Tensor) -> Tensor:
    """Return where each process's rows begin among the rows of all, and their number at the end.

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
    """Return rows that lie on any process; only what is asked for is sent.

    Every process must call this at the same time, also one that wants nothing.

    Args:
        tensor: (B, ...), this process's rows; without gradient.
        index: (M,) int64, places among the rows of all processes, in the order of ranks.

    Returns:
        (M, ...).
    """
    first = first_rows(tensor)
    distinct, place = torch.unique(index, return_inverse=True)  # sorted, so by owner
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
    return fetched.unflatten(1, tensor.shape[1:]).index_select(0, place)  # type: ignore[no-any-return, no-untyped-call]


def _split_by(rows: Tensor, first: Tensor) -> list[Tensor]:
    return [rows[a:b] for a, b in pairwise(first.tolist())]
