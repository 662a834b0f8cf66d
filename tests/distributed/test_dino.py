"""Self-distillation on several gloo processes against one process with the joined batch."""

import pytest
import torch

from tests.distributed.averaging import average_gradients
from tests.tasks.pretraining.test_dino import HEAD, crops, small_config
from triptych.distributed.env import rank, run_processes, world_size
from triptych.models.families import build_model
from triptych.tasks.pretraining.dino import DINO

ROWS = 4


def _step(name):
    """Return loss, gradients and the center after a step on this process's part of the rows."""
    torch.manual_seed(0)
    task = DINO(build_model(small_config(name)), HEAD)
    task.modules.train()
    share = ROWS // world_size()
    own = slice(rank() * share, (rank() + 1) * share)
    batch = crops()
    losses = task.losses({key: batch[key][:, own] for key in ("large_crops", "small_crops")})
    losses["dino"].backward()
    parameters = dict(task.modules.named_parameters())
    average_gradients([p for p in parameters.values() if p.requires_grad])
    gradients = {n: p.grad.tolist() for n, p in parameters.items() if p.grad is not None}
    task.after_step(1)
    return gradients, task.center.tolist()


@pytest.mark.parametrize(("num_processes", "name"), [(2, "vlmo_tiny"), (4, "flava_tiny")])
def test_processes_equal_the_joined_batch(num_processes, name):
    expected, expected_center = _step(name)
    gradients, center = run_processes(_step, num_processes, name)
    assert center == pytest.approx(expected_center, rel=1e-4, abs=1e-6)
    assert any(center)
    assert gradients.keys() == expected.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(
            torch.tensor(gradient), torch.tensor(expected[key]), atol=1e-6, rtol=1e-3, msg=key
        )
