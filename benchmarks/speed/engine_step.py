"""Training steps on several processes of this machine: memory, DDP's gain, the ladder; prints JSON.

`static_memory_ratio_2` and `_4` are the bytes of parameters, gradients, optimizer state and teacher
on one of 2 and of 4 processes under FSDP, over those of one process. `ddp_over_today` is the time
of a step on 2 processes with the engine's DDP over that with the averaging of
`tests/distributed/averaging` (one blocking fp32 all-reduce after the backward pass): both alternate
in the same processes, and it is the median of the ratios of neighbouring steps. `table6` is the
ladder of mPLUG's table 6 at a size that fits: samples per second and memory of a process as
precision, recomputation and sharding are switched on, on 2 processes.

    python -m benchmarks.speed.engine_step --only memory
    python -m benchmarks.speed.engine_step --only ddp
    python -m benchmarks.speed.engine_step --only ladder
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from benchmarks.speed.mplug_batch import VOCAB_SIZE, make_batch
from tests.distributed.averaging import average_gradients
from triptych.core.machine import cpu_has_bf16
from triptych.core.rng import seed_step
from triptych.distributed.collectives import all_reduce_mean, any_rank
from triptych.distributed.engine import Engine, Parallel
from triptych.distributed.env import rank, run_processes, world_size
from triptych.models.families import build_model, model_config
from triptych.models.mplug.family import MPLUG_FAMILY
from triptych.nn.recompute import Recompute
from triptych.recipes.mplug import pretrain
from triptych.tasks.pretraining.mplug import OBJECTIVES, MPLUGPretraining, MPLUGPretrainingConfig
from triptych.train.optim import build_optimizer, group_parameters
from triptych.train.precision import autocast
from triptych.train.step import backward_micro_batch, clip_gradients, finish_backward, set_recompute

CPU = torch.device("cpu")
MODEL = "mplug_small"
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to do a step."""

    name: str
    parallel: Parallel
    precision: str
    recompute: Recompute


LADDER = (
    Rung("fp32, DDP", "ddp", "fp32", "none"),
    Rung("bf16, DDP", "ddp", "bf16", "none"),
    Rung("bf16, DDP, selective recomputation", "ddp", "bf16", "selective"),
    Rung("bf16, DDP, full recomputation", "ddp", "bf16", "full"),
    Rung("bf16, ZeRO-2, full recomputation", "zero2", "bf16", "full"),
    Rung("bf16, FSDP, full recomputation", "fsdp", "bf16", "full"),
    Rung("bf16 parameters, FSDP, full recomputation", "fsdp", "bf16-params", "full"),
)


class Stepper:
    """Does the steps of mPLUG's pre-training, with teacher and queue, on this process's pairs."""

    def __init__(self, model: str, rung: Rung, pairs: int) -> None:
        torch.manual_seed(0)
        run = pretrain("small")
        config = MPLUGPretrainingConfig(queue_size=4096, momentum=0.995, alpha=0.4)
        self.task = MPLUGPretraining(
            build_model(model_config(model, vocab_size=VOCAB_SIZE)), config
        )
        self.task.modules.train()
        self.rung = rung
        if rung.recompute != "none":
            set_recompute(self.task.modules, rung.recompute)
        self.engine = Engine(
            self.task,
            parallel=rung.parallel,
            bf16_parameters=rung.precision == "bf16-params",
        )
        optim = replace(run.optim, muon_learning_rate=None)
        groups = group_parameters(
            self.task.modules.named_parameters(), optim, MPLUG_FAMILY.is_vision_parameter
        )
        self.parameters = [p for group in groups for _, p in group.parameters]
        self.optimizer = build_optimizer(groups, optim)
        generator = torch.Generator().manual_seed(rank())
        self.batch = make_batch(pairs, self.task.model.image_size, generator)
        self.weights = dict.fromkeys(OBJECTIVES, 1.0)
        self.done = 0

    def step(self) -> None:
        """Do one step as the Trainer does it."""
        loss = self.backward()
        reduced, values = finish_backward(self.engine, self.parameters, [loss])
        self._check(values.grad_norm)
        clip_gradients(reduced.gradients, values.grad_norm, 1.0)
        self._update()

    def plain_step(self) -> None:
        """Do one step with the plain averaging, and one message each for stop and numbers."""
        loss = self.backward(plain=True)
        average_gradients(self.parameters)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        *_, found = all_reduce_mean(torch.stack([*loss.values(), norm])).tolist()
        self._check(found)
        clip_gradients(gradients, found, 1.0)
        any_rank(False)
        self._update()

    def backward(self, *, plain: bool = False) -> dict[str, Tensor]:
        """Add this process's gradients; under an engine that shares, they are reduced."""
        seed_step(0, self.done, rank())
        engine = _Alone(self.task) if plain else self.engine
        return backward_micro_batch(
            engine,  # type: ignore[arg-type]
            self.batch,
            self.weights,
            share=1.0,
            context=autocast(CPU, self.rung.precision),
        )

    def bytes(self) -> dict[str, int]:
        """Return the bytes that this process holds between the backward pass and the update."""
        trained = list(self.task.modules.parameters())
        states = [v for entry in self.optimizer.state.values() for v in entry.values()]
        return {
            "parameters": _bytes(p for p in trained if p.requires_grad),
            "teacher": _bytes(p for p in trained if not p.requires_grad),
            "gradients": _bytes(p.grad for p in trained if p.grad is not None),
            "optimizer": _bytes(s for s in states if isinstance(s, Tensor)),
        }

    def _check(self, norm: float) -> None:
        assert math.isfinite(norm), f"{self.rung.name}: the gradient is not finite"

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        self.task.after_step(self.done)


class _Alone:
    """Runs a task's losses as they are, whatever the number of processes."""

    def __init__(self, task: MPLUGPretraining) -> None:
        self.task = task

    def losses(
        self, batch: dict[str, Tensor], active: frozenset[str], *, last: bool
    ) -> dict[str, Tensor]:
        """Return the losses; nothing is reduced."""
        del last
        return self.task.losses(batch, active=active)

    def explained(self) -> AbstractContextManager[None]:
        """Return the context of a step: nothing is compiled."""
        return nullcontext()


def _bytes(tensors: Iterable[Tensor]) -> int:
    own = (t.to_local() if isinstance(t, DTensor) else t for t in tensors)
    return sum(t.numel() * t.element_size() for t in own)


def static_bytes(model: str) -> dict[str, int]:
    """Return the bytes of one process with the second step's gradients."""
    torch.set_num_threads(1)
    stepper = Stepper(model, Rung("", "fsdp" if world_size() > 1 else "none", "fp32", "none"), 2)
    stepper.step()
    stepper.backward()
    return stepper.bytes()


def memory(model: str) -> dict[str, Any]:
    """Return `static_memory_ratio_2` and `static_memory_ratio_4`."""
    alone = static_bytes(model)
    shared = {number: run_processes(static_bytes, number, model) for number in (2, 4)}
    total = sum(alone.values())
    return {
        **{
            f"static_memory_ratio_{n}": round(sum(found.values()) / total, 3)
            for n, found in shared.items()
        },
        "static_mib": {
            str(n): {name: round(size / MIB, 1) for name, size in found.items()}
            for n, found in ((1, alone), *shared.items())
        },
    }


def paired_steps(model: str, pairs: int, rounds: int) -> tuple[list[float], list[float]]:
    """Return the seconds of DDP's and of plain steps, which alternate."""
    torch.set_num_threads(1)
    rung = Rung("", "ddp", "fp32", "none")
    ddp, plain = Stepper(model, rung, pairs), Stepper(model, rung, pairs)
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for found, step in zip(seconds, (ddp.step, plain.plain_step), strict=True):
            start = time.perf_counter()
            step()
            if number > 0:  # the first makes the optimizer's state and DDP's buckets
                found.append(time.perf_counter() - start)
    gap = max(
        float((a.detach() - b.detach()).abs().max())
        for a, b in zip(ddp.parameters, plain.parameters, strict=True)
    )
    assert gap < 1e-3, f"the weights differ by {gap}"
    return seconds


def ddp_gain(model: str, pairs: int, rounds: int) -> dict[str, Any]:
    """Return `ddp_over_today`."""
    ddp, plain = run_processes(paired_steps, 2, model, pairs, rounds)
    ratios = [a / b for a, b in zip(ddp, plain, strict=True)]
    return {
        "ddp_over_today": round(statistics.median(ratios), 3),
        "ddp_s": round(statistics.median(ddp), 3),
        "plain_s": round(statistics.median(plain), 3),
    }


def rung_cost(model: str, rung: Rung, pairs: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of a step and the peak memory of this process."""
    torch.set_num_threads(1)
    stepper = Stepper(model, rung, pairs)
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        stepper.step()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"step_s": statistics.median(seconds[1:]), "peak_mib": peak / MIB}


def ladder(model: str, pairs: int, rounds: int) -> dict[str, Any]:
    """Return `table6`; rungs in bf16 need a processor that has it."""
    table = []
    for rung in LADDER:
        if rung.precision != "fp32" and not cpu_has_bf16():
            table.append({"rung": rung.name, "not_measured": "this processor only emulates bf16"})
            continue
        found = run_processes(rung_cost, 2, model, rung, pairs, rounds)
        row = {"rung": rung.name, "samples_per_s": round(2 * pairs / found["step_s"], 2)}
        table.append(row | {"peak_mib": round(found["peak_mib"])})
    return {"table6_rungs": sum("samples_per_s" in row for row in table), "table6": table}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("memory", "ddp", "ladder"), required=True)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--pairs", type=int, default=8, help="of a process")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(arguments)
    if options.only == "memory":
        found = memory(options.model)
    elif options.only == "ddp":
        found = ddp_gain(options.model, options.pairs, options.rounds)
    else:
        found = ladder(options.model, options.pairs, min(options.rounds, 5))
    print(json.dumps(found | {"model": options.model, "pairs": options.pairs}))


if __name__ == "__main__":
    main()
