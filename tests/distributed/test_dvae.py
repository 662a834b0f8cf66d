"""Training of an image tokenizer on two gloo processes against one with the joined batch."""

import pytest
import torch

from tests.distributed.averaging import average_gradients
from tests.tasks.pretraining.test_dvae import colours, task_of
from triptych.core.rng import seed_step
from triptych.distributed.collectives import all_reduce_mean
from triptych.distributed.env import rank, run_processes, world_size

ROWS = 6


def _step():
    """Return losses and gradients of this process's images, averaged over processes."""
    task, share = task_of(), ROWS // world_size()
    image = colours(ROWS, 16)[0][rank() * share :][:share]
    seed_step(0, 4, rank())
    names = task.objective_names
    losses = {n: x for n, x in task.losses({"image": image}).items() if n in names}
    torch.stack(list(losses.values())).sum().backward()
    parameters = dict(task.modules.named_parameters())
    average_gradients(list(parameters.values()))
    gradients = {name: parameter.grad.numpy() for name, parameter in parameters.items()}
    return {name: float(all_reduce_mean(loss)) for name, loss in losses.items()}, gradients


def test_noise_and_balance_are_those_of_the_joined_batch():
    (losses, gradients), (expected, expected_gradients) = run_processes(_step, 2), _step()
    assert set(losses) == {"reconstruction", "kl", "balance"}
    assert losses == pytest.approx(expected, abs=1e-5)
    for name, gradient in gradients.items():
        assert abs(gradient - expected_gradients[name]).max() < 1e-5, name
