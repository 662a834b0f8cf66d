"""A pre-training run with and without recomputed activations."""

import pytest
import torch

from tests.tasks.pretraining.test_mplug import make_batch
from tests.tasks.pretraining.test_vlmo import build
from tests.tasks.pretraining.test_vlmo import make_batch as vlmo_batch
from tests.train.toy import ToyTask
from triptych.core.config import from_dict
from triptych.core.errors import ConfigError
from triptych.core.rng import seed_step
from triptych.distributed.engine import Engine
from triptych.models.families import create_model
from triptych.nn.block import Block
from triptych.tasks.pretraining.mplug import OBJECTIVES, MPLUGPretraining, MPLUGPretrainingConfig
from triptych.tasks.pretraining.vlmo import OBJECTIVES as VLMO_OBJECTIVES
from triptych.train.config import OptimConfig, TrainConfig
from triptych.train.precision import autocast
from triptych.train.step import backward_micro_batch, set_recompute
from triptych.train.trainer import Trainer


def _task():
    torch.manual_seed(0)
    model = create_model("mplug_tiny", image_size=32, vocab_size=30)
    for module in model.modules():  # the tiny model drops nothing by itself
        if hasattr(module, "share"):
            module.share = 0.2
        if hasattr(module, "num_heads"):
            module.dropout = 0.2
    config = MPLUGPretrainingConfig(
        queue_size=8, momentum=0.9, distill_mlm=True, distill_prefix_lm=True
    )
    task = MPLUGPretraining(model, config)
    task.modules.train()
    return task


def _vlmo():
    task = build()
    task.model.set_drop_path(0.2)
    task.modules.train()
    return task


@pytest.mark.parametrize(
    ("make", "batch", "objectives", "num_blocks"),
    [
        (_task, make_batch, OBJECTIVES, 2 * (4 + 2 + 3 + 2)),
        (_vlmo, vlmo_batch, VLMO_OBJECTIVES, len(build().model.trunk.blocks)),
    ],
    ids=["mplug", "vlmo"],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_and_gradients_are_bitwise_the_same(make, batch, objectives, num_blocks, precision):
    results = []
    for mode in ("none", "selective", "full"):
        task = make()
        assert set_recompute(task.modules, mode) == num_blocks
        seed_step(7, 0, 0)
        losses = backward_micro_batch(
            Engine(task),
            batch(),
            dict.fromkeys(objectives, 1.0),
            share=1.0,
            context=autocast(torch.device("cpu"), precision),
        )
        grads = {n: p.grad for n, p in task.modules.named_parameters() if p.requires_grad}
        results.append((losses, grads))
    losses, grads = results[0]
    for number, (again, grads_again) in enumerate(results[1:]):
        assert all(torch.equal(losses[name], again[name]) for name in losses)
        for name, grad in grads.items():
            if grad is None:
                assert grads_again[name] is None, name
            elif precision == "bf16" and number == 0:  # selective: sums of several uses in fp32
                assert (grads_again[name] - grad).norm() <= 0.01 * grad.norm(), name
            else:
                assert torch.equal(grad, grads_again[name]), name


def test_vlmo_keeps_fewer_activations():
    """Bytes that the forward pass saves for the backward pass."""
    saved = []
    for mode in ("none", "full"):
        task, total = _vlmo(), 0
        set_recompute(task.modules, mode)

        def pack(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            task.losses(vlmo_batch())
        saved.append(total)
    assert saved[1] < 0.5 * saved[0]


def test_the_trainer_switches_it_on(tmp_path):
    for wanted in ("none", "selective", "full"):
        task = _task()
        Trainer(
            task,
            lambda step: iter(()),
            config=TrainConfig(
                max_steps=1,
                global_batch_size=4,
                recompute=wanted,
                device="cpu",
            ),
            optim=OptimConfig(),
            run_folder=tmp_path / wanted,
            is_vision=lambda name: False,
        )
        blocks = [module for module in task.model.modules() if isinstance(module, Block)]
        assert len(blocks) == 11
        assert all(block.recompute == wanted for block in blocks)


def test_a_model_that_cannot_is_refused():
    with pytest.raises(ConfigError, match=r"train.recompute = 'full'.*; choose none"):
        set_recompute(ToyTask().modules, "full")


def test_files_with_the_old_switch_load():
    for old, mode in ((True, "full"), (False, "none")):
        plain = {"max_steps": 1, "global_batch_size": 4, "activation_checkpointing": old}
        assert from_dict(TrainConfig, plain).recompute == mode
