"""`train.parallel: auto`: DDP, and sharding where a GPU's memory does not suffice."""

import math

import pytest
import torch

from tests.train.toy import ToyTask
from triptych.train import trainer
from triptych.train.config import OptimConfig, TrainConfig
from triptych.train.work import ContrastWork, StepWork

CPU = torch.device("cpu")


@pytest.fixture
def choose(monkeypatch):
    """Return a function that chooses for four GPUs of so many bytes."""
    monkeypatch.setattr(trainer, "world_size", lambda: 4)

    def choose(memory, *, task=None, work=None, **settings):
        monkeypatch.setattr(trainer, "memory_bytes", lambda device: memory)
        config = TrainConfig(max_steps=1, global_batch_size=8, **{"precision": "fp32"} | settings)
        return trainer.resolve_parallel(config, OptimConfig(), task or ToyTask(), CPU, work)

    return choose


def test_a_cpu_never_runs_out():
    assert trainer.memory_bytes(CPU) == math.inf


def test_auto_takes_what_fits(choose):
    parameters = sum(p.numel() for p in ToyTask().modules.parameters() if p.requires_grad)
    plenty = 16 * parameters / 0.9 + 1000
    assert choose(plenty) == "ddp"
    assert choose(math.inf) == "ddp"
    assert choose(1.0) == "fsdp"
    assert choose(plenty, parallel="hsdp") == "hsdp"


def test_what_a_step_keeps_counts_too(choose):
    plenty = 1e6
    assert choose(plenty) == "ddp"
    large = StepWork(passes=(), contrast=ContrastWork(embed_dim=100_000))
    assert choose(plenty, work=large) == "fsdp"


def test_bf16_parameters_and_tasks_that_cannot_be_sharded(choose):
    assert choose(math.inf, precision="bf16-params") == "zero2"
    task = ToyTask()
    task.not_sharded = "it says so"
    assert choose(1.0, task=task) == "ddp"


def test_one_process_shares_nothing():
    config = TrainConfig(max_steps=1, global_batch_size=8)
    assert trainer.resolve_parallel(config, OptimConfig(), ToyTask(), CPU) == "none"
