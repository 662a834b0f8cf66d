"""Muon: momentum whose update is orthogonalised, for the matrices inside blocks; AdamW elsewhere.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon); the scale that lets AdamW's learning rates
carry over is that of Liu et al. 2025 (arXiv:2502.16982), 0.2·√max(rows, columns).

Where processes share the parameters by rows (FSDP2), each matrix is whole on one process while it
is orthogonalised: its rows go there in one exchange, and those of the result come back in another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional as F

from triptych.core.errors import ConfigError
from triptych.core.machine import cpu_has_bf16
from triptych.distributed.collectives import all_gather
from triptych.distributed.env import rank, world_size

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd quintic that pulls singular values towards 1 (Jordan et al. 2024)."""


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return matrices with the same singular vectors and singular values of about 1.

    Args:
        matrices: (M, R, C) with R <= C.
        steps: Newton-Schulz iterations.

    Returns:
        (M, R, C) bfloat16; singular values end between 0.7 and 1.2. A processor that would
        emulate bf16 computes in fp32.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(_computing_dtype(matrices.device))
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(torch.bfloat16)


def _computing_dtype(device: torch.device) -> torch.dtype:
    emulated = device.type == "cpu" and not cpu_has_bf16()
    return torch.float32 if emulated else torch.bfloat16


class Muon(torch.optim.AdamW):
    """AdamW that treats the groups marked `muon` otherwise.

    Matrices of one shape are orthogonalised in one batch; processes that train together share the
    work.

    Args:
        groups: Parameter groups; one with `"muon": True` holds matrices only.
        momentum: Decay rate of Muon's momentum, which is Nesterov's.
        options: What AdamW takes.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, **options: Any) -> None:
        super().__init__(groups, **options)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters."""
        chosen = [
            (parameter, group)
            for group in self.param_groups
            if group.get("muon")
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        gradients = [parameter.grad for parameter, _ in chosen]
        for parameter, _ in chosen:
            parameter.grad = None  # AdamW passes over it
        super().step(closure)
        for (parameter, _), gradient in zip(chosen, gradients, strict=True):
            parameter.grad = gradient
        self._muon_step(chosen)

    def _muon_step(self, chosen: list[tuple[Tensor, dict[str, Any]]]) -> None:
        for kind, run in ((False, _orthogonalise_whole), (True, _orthogonalise_rows)):
            entries = [entry for entry in chosen if isinstance(entry[0], DTensor) == kind]
            updates = [self._momentum_of(parameter) for parameter, _ in entries]
            results = run(updates, [parameter for parameter, _ in entries])
            for (parameter, group), result in zip(entries, results, strict=True):
                scale, own = 0.2 * max(parameter.shape) ** 0.5, _own_rows(parameter)
                own.mul_(1 - group["lr"] * group["weight_decay"])
                own.add_(result.to(own.dtype), alpha=-group["lr"] * scale)

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        """Return Nesterov's update of a matrix, or of the rows of it that this process has."""
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum, own = _own_rows(state["momentum"]), _own_rows(gradient)
        momentum.lerp_(own, 1 - self.momentum)
        return torch.lerp(own, momentum, self.momentum)


def _own_rows(matrix: Tensor) -> Tensor:
    return matrix.to_local() if isinstance(matrix, DTensor) else matrix


def _orthogonalise_each(
    matrices: Sequence[Tensor], run: Callable[[Tensor], Tensor] = orthogonalise
) -> list[Tensor]:
    """Orthogonalise matrices of any shapes, those of one shape in one batch."""
    batches: dict[tuple[int, ...], list[int]] = defaultdict(list)
    wides = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT for matrix in matrices]
    for number, wide in enumerate(wides):
        batches[tuple(wide.shape)].append(number)
    found: dict[int, Tensor] = {}
    for numbers in batches.values():
        updates = run(torch.stack([wides[number] for number in numbers]))
        for number, update in zip(numbers, updates, strict=True):
            found[number] = update if update.shape == matrices[number].shape else update.mT
    return [found[number] for number in range(len(matrices))]


def _orthogonalise_whole(updates: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Orthogonalise matrices that each process has whole; the processes share the work."""
    del parameters
    return _orthogonalise_each(updates, _shared)


def _shared(matrices: Tensor) -> Tensor:
    """Orthogonalise (M, R, C), each process its part."""
    if world_size() == 1:
        return orthogonalise(matrices)
    share = -(-len(matrices) // world_size())
    own = matrices[rank() * share : (rank() + 1) * share]
    done = orthogonalise(own) if len(own) else own.to(torch.bfloat16)
    return all_gather(F.pad(done, (0, 0, 0, 0, 0, share - len(own))))[: len(matrices)]


def _orthogonalise_rows(updates: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Orthogonalise matrices whose rows lie on several processes.

    Args:
        updates: This process's rows of each matrix.
        parameters: They say how rows are spread.

    Returns:
        This process's rows of each result, bfloat16.

    Raises:
        ConfigError: A matrix is spread in another way than by rows.
    """
    matrices = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
    if not matrices:
        return []
    group = _group_of_rows(matrices)
    here, size = dist.get_rank(group), dist.get_world_size(group)
    widths = [matrix.shape[1] for matrix in matrices]
    owners = _owners([tuple(matrix.shape) for matrix in matrices], size)
    order = sorted(range(len(owners)), key=owners.__getitem__)  # by owner, then by number
    mine = [number for number in order if owners[number] == here]
    rows = {number: _rows_of_each(matrices[number].shape[0], size) for number in mine}
    sent = [sum(updates[n].numel() for n in order if owners[n] == to) for to in range(size)]
    given = [sum(rows[n][by] * widths[n] for n in mine) for by in range(size)]

    dtype = _computing_dtype(updates[0].device)
    parts: dict[int, list[Tensor]] = defaultdict(list)
    arrived = _exchange([updates[n].to(dtype) for n in order], sent, given, group)
    for by, message in enumerate(arrived):
        sizes = [rows[n][by] * widths[n] for n in mine]
        for n, part in zip(mine, torch.split(message, sizes), strict=True):  # type: ignore[no-untyped-call]
            parts[n].append(part.view(-1, widths[n]))
    whole = _orthogonalise_each([torch.cat(parts[n]) for n in mine])
    done = [torch.split(matrix, rows[n]) for n, matrix in zip(mine, whole, strict=True)]  # type: ignore[no-untyped-call]

    nothing = updates[0].new_empty(0, dtype=torch.bfloat16)  # of a process that owns no matrix
    back = [nothing, *(chunks[by] for by in range(size) for chunks in done)]
    returned = torch.cat(_exchange(back, given, sent, group))
    own = torch.split(returned, [updates[n].numel() for n in order])  # type: ignore[no-untyped-call]
    found = dict(zip(order, own, strict=True))
    return [found[n].view(update.shape) for n, update in enumerate(updates)]


def _exchange(
    parts: Sequence[Tensor], sent: list[int], given: list[int], group: dist.ProcessGroup
) -> tuple[Tensor, ...]:
    """Send numbers to each process of a group, and return what comes from each.

    Args:
        parts: Tensors of one type that make the messages when joined, the first process's first.
        sent: Numbers for each process.
        given: Numbers from each process.
        group: Of processes.
    """
    message = torch.cat([part.flatten() for part in parts])
    found = message.new_empty(sum(given))
    dist.all_to_all_single(found, message, given, sent, group=group)
    return torch.split(found, given)  # type: ignore[no-any-return, no-untyped-call]


def _group_of_rows(matrices: Sequence[DTensor]) -> dist.ProcessGroup:
    """Return the processes among which the rows of all matrices are spread."""
    mesh, placements = matrices[0].device_mesh, matrices[0].placements
    split = [dim for dim, placed in enumerate(placements) if not placed.is_replicate()]
    for matrix in matrices:
        same = matrix.device_mesh == mesh and matrix.placements == placements
        if not same or [placements[dim] for dim in split] != [Shard(0)]:
            raise ConfigError(
                f"optim.muon_learning_rate: a matrix {tuple(matrix.shape)} is placed "
                f"{matrix.placements} and the first one {placements}; Muon needs all of them split "
                "by rows over the same processes, as train.parallel zero2, fsdp and hsdp do"
            )
    return mesh.get_group(split[0])


def _rows_of_each(num_rows: int, size: int) -> list[int]:
    """Return how many rows each process has in FSDP2: the last ones fewer, or none."""
    most = -(-num_rows // size)
    return [max(0, min(most, num_rows - number * most)) for number in range(size)]


def _owners(shapes: Sequence[tuple[int, ...]], size: int) -> list[int]:
    """Return which process orthogonalises each matrix: the costliest first, where least is done."""
    costs = [shape[0] * shape[1] * min(shape) for shape in shapes]
    owners, loads = [0] * len(shapes), [0] * size
    for number in sorted(range(len(shapes)), key=lambda n: -costs[n]):
        owners[number] = min(range(size), key=loads.__getitem__)
        loads[owners[number]] += costs[number]
    return owners
