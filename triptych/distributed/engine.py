"""Train one model on several processes: PyTorch's DDP and FSDP2 around a task's losses.

Their hooks fire on `forward` alone, and a task enters its model by several methods. So what is
wrapped is a root module whose forward IS the task's losses: parameters that lie outside the blocks
are gathered once a step and serve every method, and each block is a unit of its own. A block names
the methods by which it is entered in `shard_entries` (see `nn.block.Block`); the order in which
units are entered must be the same on all processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Replicate

from triptych.core.errors import ConfigError
from triptych.distributed.collectives import share_state
from triptych.distributed.env import local_world_size, world_size

Parallel = Literal["none", "ddp", "zero2", "fsdp", "hsdp"]


class Trainable(Protocol):
    """What an engine runs; `train.task.Task` is one.

    Attributes:
        modules: Everything that is trained, on the training device.

    A task that cannot share its parameters, since its processes enter units in different orders,
    says why in the attribute `not_sharded`.
    """

    @property
    def modules(self) -> nn.ModuleDict: ...  # noqa: D102 - documented above

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return scalars by objective."""
        ...


SHARDED = ("zero2", "fsdp", "hsdp")


@dataclass(frozen=True, slots=True)
class Reduced:
    """Gradients of one step, complete, and what the processes summed with them.

    Attributes:
        split: This process's parts of sharded gradients.
        whole: Gradients that each process has.
        norm: Scalar, the global L2 norm.
        sums: (N,) sums over processes.
    """

    split: list[Tensor]
    whole: list[Tensor]
    norm: Tensor
    sums: Tensor

    @property
    def gradients(self) -> list[Tensor]:
        """All of this process's gradients, to be scaled in place."""
        return [*self.split, *self.whole]


class LossRoot(nn.Module):
    """What DDP or FSDP wraps: a module whose forward is the losses of a task."""

    def __init__(self, task: Trainable) -> None:
        super().__init__()
        self.held = task.modules
        self._task = task

    def forward(
        self, batch: Mapping[str, Tensor], active: frozenset[str] | None
    ) -> dict[str, Tensor]:
        """Return the losses of a micro-batch; none at all where `active` is None."""
        return {} if active is None else self._task.losses(batch, active=active)


class Engine:
    """Runs the losses of a task on all processes, and reduces what they must agree on.

    With one process it is the task itself. The task's parameters are replaced by sharded ones
    (`DTensor`) under `zero2`, `fsdp` and `hsdp`: build the optimizer afterwards.

    Args:
        task: What is trained, on the training device.
        parallel: How the processes share the work.
        shard_size: Processes of a group of `hsdp`; None: those of one machine.
        bf16_parameters: Whether sharded weights are gathered and used in bf16; gradients are
            reduced, and weights updated, in fp32.
        compile_blocks: Whether `torch.compile` compiles the forward of each block.

    Raises:
        ConfigError: The processes cannot share the work in this way.
    """

    def __init__(
        self,
        task: Trainable,
        *,
        parallel: Parallel = "none",
        shard_size: int | None = None,
        bf16_parameters: bool = False,
        compile_blocks: bool = False,
    ) -> None:
        self.parallel: Parallel = parallel if world_size() > 1 else "none"
        if world_size() > 1 and parallel == "none":
            raise ConfigError(
                f"train.parallel = 'none': {world_size()} processes train; choose ddp, zero2, fsdp "
                "or hsdp, or start one process"
            )
        obstacle = getattr(task, "not_sharded", None)
        if self.is_sharded and obstacle:
            raise ConfigError(f"train.parallel = {parallel!r}: {obstacle}; choose ddp")
        if bf16_parameters and not self.is_sharded:
            raise ConfigError(
                "train.precision = 'bf16-params' needs sharded weights: several processes, with "
                "train.parallel zero2, fsdp or hsdp; choose bf16 otherwise"
            )
        share_state(task.modules)
        self.root = LossRoot(task)
        self._call: nn.Module = self.root
        self._unreduced: list[nn.Parameter] = []
        self._replicas = 1
        self._compiles = compile_blocks
        if compile_blocks:
            for unit in shard_units(task.modules):
                unit.compile()
        if self.parallel == "ddp":
            self._call = nn.parallel.DistributedDataParallel(
                self.root,
                find_unused_parameters=True,
                forward_sync_buffers=False,
                init_sync=False,
                gradient_as_bucket_view=True,
            )
        elif self.is_sharded:
            self._shard(shard_size, bf16_parameters)

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the parameters only."""
        return self.parallel in SHARDED

    @property
    def _splits_weights(self) -> bool:
        """Whether blocks give up their whole weights after each use; the root keeps its own."""
        return self.is_sharded and self.parallel != "zero2"

    def losses(
        self, batch: Mapping[str, Tensor], active: frozenset[str], *, last: bool = True
    ) -> dict[str, Tensor]:
        """Return the losses of a micro-batch; gradients are reduced in the backward pass.

        Args:
            batch: On the training device.
            active: Objectives to compute.
            last: Whether this is the last micro-batch of a step. Gradients of the others are
                accumulated, and reduced with the last one's.
        """
        if isinstance(self.root, FSDPModule):
            self.root.set_requires_gradient_sync(last)
        call = self._call
        accumulates = isinstance(call, nn.parallel.DistributedDataParallel) and not last
        with call.no_sync() if accumulates else nullcontext():  # type: ignore[operator]
            found: dict[str, Tensor] = call(batch, active)
        return found

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Say what to do where `torch.compile` fails, in the forward or the backward pass.

        Raises:
            ConfigError: Blocks are compiled, and torch or the compiler of this machine failed.
        """
        try:
            yield
        except Exception as error:
            if not (self._compiles and type(error).__module__.startswith(("torch._", "triton"))):
                raise
            first = str(error).splitlines()[0] if str(error) else ""
            raise ConfigError(
                f"train.compile_blocks: torch.compile failed on this machine ({first}); "
                "train without it, or with another C++ compiler"
            ) from error

    @torch.no_grad()
    def reduce(self, parameters: Sequence[nn.Parameter], values: Tensor) -> Reduced:
        """Complete the gradients, and sum values over processes, in one all-reduce.

        Args:
            parameters: What is trained; the same ones in the same order on each process.
            values: (N,) fp32, summed over the processes.
        """
        if world_size() == 1:
            gradients = [p.grad for p in parameters if p.grad is not None]
            return Reduced([], gradients, nn.utils.get_total_norm(gradients).float(), values)
        alone = {id(p) for p in self._unreduced}
        reduced = [p.grad for p in parameters if p.grad is not None and id(p) not in alone]
        split = [g.to_local() for g in reduced if isinstance(g, DTensor)]
        whole = [g for g in reduced if not isinstance(g, DTensor)]
        square = _square_sum(split, values) / self._replicas
        square += _square_sum(whole, values) / world_size()
        has = [float(p.grad is not None) for p in self._unreduced]
        own = [values.new_zeros(()) if p.grad is None else p.grad.float() for p in self._unreduced]
        message = torch.cat([values, square[None], values.new_tensor(has), *[g[None] for g in own]])
        dist.all_reduce(message)
        sizes = [len(values), 1, len(has), len(own)]
        sums, square, has_any, totals = torch.split(message, sizes)  # type: ignore[no-untyped-call]
        square = square[0]
        for parameter, counted, total in zip(self._unreduced, has_any, totals, strict=True):
            # What no process has stays None: at a zero AdamW would move the parameter all the same
            if counted > 0:
                parameter.grad = (total / world_size()).to(parameter.dtype)
                square = square + parameter.grad.float().square()
        lone = [p.grad for p in self._unreduced if p.grad is not None]
        return Reduced(split, [*whole, *lone], square.sqrt(), sums)

    @torch.no_grad()
    def norms(self, reduced: Reduced) -> Tensor:
        """Return (N,) fp32, the L2 norm of each of `reduced.gradients`."""
        own = torch.stack([norm.float() for norm in torch._foreach_norm(reduced.gradients)])
        parts = len(reduced.split)
        if parts:
            squares = own[:parts].square()
            dist.all_reduce(squares)
            own[:parts] = (squares / self._replicas).sqrt()
        return own

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Hold the whole parameters on each process while entered, to use the model as it is.

        All processes must enter together; in it, each may use the model as often as it needs.
        """
        root: nn.Module = self.root
        units = [m for m in root.modules() if isinstance(m, FSDPModule)]
        if units:
            root({}, None)  # the first call of any unit must be the root's
        for unit in units:
            unit.unshard()
            unit.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for unit in units:
                unit.reshard()
                split = self._splits_weights and unit is not root
                unit.set_reshard_after_forward(split, recurse=False)
                _clear_order(unit)

    @torch.no_grad()
    def collect(self) -> None:
        """Replace sharded parameters by whole ones, on the CPU of rank 0 alone.

        For the end of training: the model of rank 0 can be saved, and none can be trained on.
        """
        for module in self.root.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if isinstance(parameter, DTensor):
                    tensor = parameter.full_tensor()
                    kept = tensor.cpu() if dist.get_rank() == 0 else tensor.new_empty(0)
                    module._parameters[name] = nn.Parameter(kept, parameter.requires_grad)

    def _shard(self, shard_size: int | None, bf16_parameters: bool) -> None:
        mesh = self._mesh(shard_size)
        scalars = [p for p in self.root.parameters() if p.ndim == 0]  # these cannot be sharded
        self._unreduced = [p for p in scalars if p.requires_grad]
        half = torch.bfloat16 if bf16_parameters else None
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
        for unit in shard_units(self.root.held):
            fully_shard(
                unit,
                mesh=mesh,
                mp_policy=policy,
                reshard_after_forward=self._splits_weights,
            )
            for name in unit.shard_entries:
                register_fsdp_forward_method(unit, name)
        fully_shard(
            self.root,
            mesh=mesh,
            mp_policy=policy,
            reshard_after_forward=False,
            ignored_params=set(scalars),
        )

    def _mesh(self, shard_size: int | None) -> DeviceMesh:
        device = next(self.root.parameters()).device.type
        world = world_size()
        if self.parallel != "hsdp":
            return init_device_mesh(device, (world,), mesh_dim_names=("shard",))
        size = shard_size or local_world_size()
        if world % size:
            raise ConfigError(
                f"train.shard_size = {size}: {world} processes do not form groups of that size; "
                f"choose a divisor of {world}"
            )
        self._replicas = world // size
        names = ("replicate", "shard")
        return init_device_mesh(device, (world // size, size), mesh_dim_names=names)


def shard_units(modules: nn.Module) -> list[Any]:
    """Return the blocks that are sharded each on its own: those that name their `shard_entries`."""
    return [module for module in modules.modules() if hasattr(type(module), "shard_entries")]


def shard_like(tensor: Tensor, target: Tensor) -> Tensor:
    """Return a whole tensor in the layout of `target`: its part of it, where that is sharded.

    Args:
        tensor: The same on each process.
        target: A plain tensor or a `DTensor` of the same shape.
    """
    if not isinstance(target, DTensor):
        return tensor.to(target.device)
    mesh, placements = target.device_mesh, target.placements
    tensor = tensor.to(target.device)
    own = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return own.redistribute(mesh, placements)


def _clear_order(unit: Any) -> None:
    """Clear the record of the order in which units were used since the last backward pass.

    The next one would gather ahead by it, and each process must gather the same. Torch has no
    public way to say that there will be no backward pass.
    """
    state = unit._get_fsdp_state()
    state._comm_ctx.post_forward_order.clear()
    groups = getattr(state, "_fsdp_param_groups", None)  # older ones have one
    for group in [state._fsdp_param_group] if groups is None else groups:
        if group is not None:
            group._post_forward_indices.clear()


def _square_sum(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return the fp32 sum of squares, through norms as torch computes them."""
    if not tensors:
        return like.new_zeros(())
    return nn.utils.get_total_norm(tensors).float().square()
