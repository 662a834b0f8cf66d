"""The engine through the real Trainer: every way to share the work equals one process."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from benchmarks.parity.engine_equality import BOUND, FAMILIES, Cell, gap, reference_of, run_cells
from tests.train.toy import ToyTask
from triptych.core.errors import ConfigError
from triptych.distributed.engine import Engine
from triptych.distributed.env import rank, run_processes, world_size

REFERENCE = Path(__file__).parent / "reference_losses.json"

CELLS = (
    Cell("mplug", "ddp", 2, 2, "full"),
    Cell("vlmo", "zero2", 2, 2),
    Cell("flava", "fsdp", 2),
    Cell("mplug", "hsdp", 4),
)
LOW = (
    Cell("vlmo", "fsdp", 2, precision="bf16-params"),
    Cell("vlmo", "zero2", 2, precision="fp16"),
    Cell("flava", "ddp", 2, precision="bf16"),
)


@pytest.fixture(scope="module")
def trained():
    """What each cell, and each one that it is compared with, gives."""
    alone = {reference_of(cell) for cell in CELLS}
    alone |= {replace(reference_of(cell), precision="fp32") for cell in LOW}
    groups = {1: list(alone), 2: [c for c in (*CELLS, *LOW) if c.ranks == 2]}
    groups[4] = [cell for cell in CELLS if cell.ranks == 4]
    return {
        cell: found
        for group in groups.values()
        for cell, found in zip(group, run_cells(group), strict=True)
    }


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: f"{c.family}-{c.parallel}-{c.ranks}")
def test_every_way_equals_one_process_on_the_joined_batch(trained, cell):
    assert gap(trained[cell], trained[reference_of(cell)]) < BOUND


@pytest.mark.parametrize("cell", LOW, ids=lambda c: f"{c.family}-{c.precision}")
def test_lower_precision_stays_near_fp32_and_is_not_fp32(trained, cell):
    losses, _ = trained[cell]
    expected, _ = trained[replace(reference_of(cell), precision="fp32")]
    # the first loss scale of fp16 is too large for this model: its first gradients are dropped
    for line, own in list(zip(losses, expected, strict=True))[
        : 1 if cell.precision == "fp16" else 3
    ]:
        total = own["loss/total"]
        assert line["loss/total"] == pytest.approx(total, rel=0.02)
        assert line["loss/total"] != total


def test_losses_of_twenty_steps_are_those_stored():
    """Guards against silent change: write the file anew only for a change that is meant.

    python -m tests.distributed.test_engine
    """
    stored = json.loads(REFERENCE.read_text())
    assert stored.keys() == {"mplug", "vlmo", "flava"}
    for family, lines in stored.items():
        ((losses, _),) = run_cells([Cell(family, steps=20)])
        for number, (line, expected) in enumerate(zip(losses, lines, strict=True), start=1):
            assert line == pytest.approx(expected, rel=2e-3, abs=2e-3), (family, number)


class _Units(nn.Module):
    shard_entries = ()

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x):
        return self.linear(x)


class _SmallTask:
    """Two units, a scalar, a parameter that no step uses, and one that only rank 1 uses."""

    def __init__(self):
        torch.manual_seed(3)
        self.first, self.second = _Units(), _Units()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.lone = nn.Parameter(torch.tensor(1.0))
        state = nn.ParameterDict({"scale": self.scale, "unused": nn.Parameter(torch.ones(4))})
        state["lone"] = self.lone
        self.modules = nn.ModuleDict({"a": self.first, "b": self.second, "state": state})

    def losses(self, batch, *, active):
        states = self.first(batch["x"]) - self.second(batch["x"])
        loss = (states * self.modules["state"]["scale"]).square().mean()
        if batch["lone"]:
            loss = loss + self.modules["state"]["lone"] * 4.0
        return {"loss": loss}


def _reduced(parallel):
    """Return what `reduce` and `norms` give, by name, and the whole state after `collect`."""
    task = _SmallTask()
    engine = Engine(task, parallel=parallel)
    batch = {"x": torch.arange(40.0).view(8, 5)[rank() :: world_size()] / 10, "lone": rank() == 0}
    engine.losses(batch, frozenset({"loss"}))["loss"].backward()
    trained = dict(engine.root.held.named_parameters())
    reduced = engine.reduce(list(trained.values()), torch.tensor([1.0, float(rank())]))
    norms = sorted(engine.norms(reduced).tolist())
    gradients = {
        name: None if p.grad is None else _whole(p.grad).numpy() for name, p in trained.items()
    }
    with engine.whole():
        inside = engine.root.held["a"].linear.weight.detach().clone()
    engine.collect()
    state = {name: t.clone().numpy() for name, t in engine.root.held.state_dict().items()}
    return reduced.norm.item(), reduced.sums.tolist(), norms, gradients, state, inside.numpy()


def _small_cases():
    return {"refused": _refused()} | {way: _reduced(way) for way in ("ddp", "fsdp")}


@pytest.fixture(scope="module")
def small_cases():
    return run_processes(_small_cases, 2)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_message_carries_gradients_norm_and_values(small_cases, parallel):
    norm, sums, norms, gradients, state, inside = small_cases[parallel]
    own_norm, _, own_norms, own_gradients, own_state, own_inside = _reduced("none")
    assert sums == [2.0, 1.0]
    # rank 0 alone has the lone term, so its gradient is 4 of two processes: 2
    expected = [2.0 if value == 4.0 else value for value in own_norms]
    assert norms == pytest.approx(sorted(expected), rel=1e-5)
    assert norm == pytest.approx(sum(value**2 for value in expected) ** 0.5, rel=1e-5)
    assert own_norm == pytest.approx(sum(value**2 for value in own_norms) ** 0.5, rel=1e-5)
    assert gradients["state.unused"] is None or not gradients["state.unused"].any()
    for name, gradient in own_gradients.items():
        if name not in ("state.unused", "state.lone"):
            assert gradients[name] == pytest.approx(gradient, rel=1e-4), name
    assert state.keys() == own_state.keys()
    assert all((state[name] == own_state[name]).all() for name in own_state)
    assert (inside == own_inside).all()


def _refused():
    found = []
    for options in (
        {"parallel": "none"},
        {"parallel": "ddp", "bf16_parameters": True},
        {"parallel": "hsdp", "shard_size": 3},
    ):
        with pytest.raises(ConfigError) as caught:
            Engine(ToyTask(), **options)
        found.append(str(caught.value))
    return found


def test_what_cannot_be_shared_is_refused(small_cases):
    none, half, groups = small_cases["refused"]
    assert "train.parallel = 'none': 2 processes train; choose ddp" in none
    assert "needs sharded weights" in half
    assert "train.shard_size = 3: 2 processes do not form groups" in groups


def test_compiled_blocks_are_those_of_the_engine(monkeypatch):
    compiled = []
    monkeypatch.setattr(_Units, "compile", lambda unit: compiled.append(unit))
    task = _SmallTask()
    Engine(task, compile_blocks=True)
    assert compiled == [task.first, task.second]


class CompileError(Exception):
    """Stands in for torch's, by the name of its module."""


def test_a_compiler_that_fails_is_no_traceback():
    CompileError.__module__ = "torch._inductor.exc"
    engine = Engine(ToyTask())
    with pytest.raises(CompileError), engine.explained():
        raise CompileError("C++ compile error")
    engine._compiles = True
    failed = r"\(C\+\+ compile error\); train without it"
    with pytest.raises(ConfigError, match=failed), engine.explained():
        raise CompileError("C++ compile error\nlong output")
    with pytest.raises(ZeroDivisionError), engine.explained():
        raise ZeroDivisionError


if __name__ == "__main__":
    cells = [Cell(family, steps=20) for family in FAMILIES]
    lines = {cell.family: found[0] for cell, found in zip(cells, run_cells(cells), strict=True)}
    REFERENCE.write_text(json.dumps(lines, indent=1) + "\n")


def _whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
