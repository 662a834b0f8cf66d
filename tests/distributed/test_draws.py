"""Draws within a task, on two gloo processes against one with the joined batch.

The noise of an image tokenizer's codes, and the captions of SCST.
"""

import pytest
import torch

from tests.distributed.averaging import average_gradients
from tests.tasks.finetuning.tiny import images, tiny_model, tiny_tokenizer
from tests.tasks.pretraining.test_dvae import colours, task_of
from triptych.core.rng import seed_step
from triptych.distributed.collectives import all_reduce_mean
from triptych.distributed.env import rank, run_processes, world_size
from triptych.tasks.finetuning.scst import SCST, SCSTConfig

ROWS = 6


def _step(task, batch):
    """Return losses and gradients of this process's rows, averaged over processes."""
    share = ROWS // world_size()
    own = {key: value[rank() * share :][:share] for key, value in batch.items()}
    seed_step(0, 4, rank())
    names = task.objective_names
    losses = {n: x for n, x in task.losses(own, active=names).items() if n in names}
    torch.stack(list(losses.values())).sum().backward()
    parameters = dict(task.modules.named_parameters())
    average_gradients(list(parameters.values()))
    gradients = {n: p.grad.numpy() for n, p in parameters.items() if p.grad is not None}
    return {name: float(all_reduce_mean(loss)) for name, loss in losses.items()}, gradients


def _both():
    tokenizer = tiny_tokenizer()

    def reward(key, texts, ended):
        return [float(len(text) % (5 + key)) for text in texts]

    config = SCSTConfig(num_samples=3, min_tokens=1, max_tokens=6)
    captions = SCST(tiny_model(tokenizer), config, tokenizer, reward)
    keyed = {"image": images(ROWS), "image_key": torch.arange(ROWS)}
    return {
        "tokenizer": _step(task_of(), {"image": colours(ROWS, 16)[0]}),
        "captions": _step(captions, keyed),
    }


def test_draws_are_those_of_the_joined_batch():
    together, alone = run_processes(_both, 2), _both()
    assert set(alone["tokenizer"][0]) == {"reconstruction", "kl", "balance"}
    assert abs(alone["captions"][0]["scst"]) > 0.01
    for name, (losses, gradients) in together.items():
        expected, expected_gradients = alone[name]
        assert losses == pytest.approx(expected, abs=1e-5)
        assert gradients.keys() == expected_gradients.keys()
        for key, gradient in gradients.items():
            assert abs(gradient - expected_gradients[key]).max() < 1e-5, key
