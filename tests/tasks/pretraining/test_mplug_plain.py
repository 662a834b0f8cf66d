"""The fast path against one pass an objective: losses and gradients, for every fusion network."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from benchmarks.speed.mplug_plain import plain_losses
from benchmarks.speed.plain import takes_shortcuts
from tests.models.test_families import shrunken
from tests.tasks.pretraining.test_mplug import make_batch
from triptych.core.rng import seed_step
from triptych.models.mplug.model import MPLUG
from triptych.nn.init import init_weights
from triptych.tasks.pretraining.mplug import OBJECTIVES, MPLUGPretraining, MPLUGPretrainingConfig

pytestmark = pytest.mark.usefixtures("packed_at_any_width")

FUSIONS = (
    "skip_connected",
    "connected_attention",
    "co_attention",
    "asymmetric_co_attention",
    "none",
)


DISTILL = {
    False: (False, False),
    True: (True, True),
    "mlm": (True, False),
    "prefix_lm": (False, True),
}
"""Whether MLM and PrefixLM learn from the teacher."""


def make_task(*, distill, name="mplug_base_patch16_256", momentum=0.9, **changes):
    torch.manual_seed(0)
    config = dataclasses.replace(shrunken(name), **changes)
    text = dataclasses.replace(config.text, dropout=0.0, attention_dropout=0.0)
    vision = dataclasses.replace(config.vision, attention_dropout=0.0)
    model = MPLUG(dataclasses.replace(config, text=text, vision=vision))
    init_weights(model, 0.1)
    mlm, prefix_lm = DISTILL[distill]
    settings = MPLUGPretrainingConfig(
        queue_size=5, momentum=momentum, distill_mlm=mlm, distill_prefix_lm=prefix_lm
    )
    task = MPLUGPretraining(model, settings)
    with torch.no_grad():
        for parameter in task.modules.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        task.temperature.fill_(0.07)
    embeddings = F.normalize(torch.randn(2, 5, 8), dim=-1)
    task.modules["queue"].push(embeddings[0], embeddings[1], torch.arange(10).view(5, 2) + 50)
    task.modules.train()
    return task


def run(task, losses_of, batch, active):
    """Return losses and gradients from the same draws."""
    seed_step(4, 0, 0)
    losses = losses_of(batch, active=active)
    trained = {n: p for n, p in task.modules.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(sum(losses.values()), trained.values(), allow_unused=True)
    return losses, dict(zip(trained, grads, strict=True))


@pytest.mark.parametrize("distill", DISTILL)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_losses_and_gradients_equal_one_pass_an_objective(fusion, distill):
    task = make_task(fusion=fusion, distill=distill)
    batch = make_batch(image_size=task.model.image_size)
    active = OBJECTIVES & (task.model.capabilities | {"prefix_lm"})
    assert active == (OBJECTIVES - {"itm"} if fusion == "none" else OBJECTIVES)
    found, grads = run(task, task.losses, batch, active)
    expected, plain_grads = run(
        task, lambda b, active: plain_losses(task, b, active=active), batch, active
    )
    assert (
        list(found)
        == list(expected)
        == [n for n in ("itc", "itm", "mlm", "prefix_lm") if n in active]
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert any(grad is not None and bool(grad.any()) for grad in grads.values())
    for name, grad in grads.items():
        torch.testing.assert_close(grad, plain_grads[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("layers", [(), (2, 5), (0, 3)])
@pytest.mark.parametrize("residual", [False, True])
def test_any_connected_layers_give_the_same(layers, residual):
    task = make_task(
        distill=True, connected_layers=layers, connected_image_residual=residual, momentum=0.5
    )
    batch = make_batch(image_size=task.model.image_size)
    found, grads = run(task, task.losses, batch, OBJECTIVES)
    expected, plain = run(
        task, lambda b, active: plain_losses(task, b, active=active), batch, OBJECTIVES
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, plain[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_itc_alone_equals_itc_among_all(chunk_size):
    task = make_task(distill=False)
    task.config = dataclasses.replace(task.config, chunk_size=chunk_size)
    batch, alone = make_batch(image_size=task.model.image_size), frozenset({"itc"})
    found, grads = run(task, task.losses, batch, alone)
    expected, plain = run(
        task, lambda b, active: plain_losses(task, b, active=active), batch, alone
    )
    assert list(found) == ["itc"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert any(grad is not None and bool(grad.any()) for grad in grads.values())
    for name, grad in grads.items():
        torch.testing.assert_close(grad, plain[name], atol=1e-5, rtol=1e-5, msg=name)


def test_distillation_reaches_what_it_should():
    batch = None
    losses = {}
    for distill in (False, True):
        task = make_task(distill=distill)
        batch = batch or make_batch(image_size=task.model.image_size)
        losses[distill], _ = run(task, task.losses, batch, OBJECTIVES)
    for name in ("itc", "itm"):
        torch.testing.assert_close(losses[True][name], losses[False][name])
    for name in ("mlm", "prefix_lm"):
        assert not torch.allclose(losses[True][name], losses[False][name], atol=1e-4), name


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_batch_without_a_masked_word_costs_nothing(fusion):
    task = make_task(fusion=fusion, distill=True)
    batch = make_batch(image_size=task.model.image_size)
    batch["mlm_labels"] = torch.full_like(batch["mlm_labels"], -100)
    losses, grads = run(task, task.losses, batch, frozenset({"mlm"}))
    assert losses["mlm"] == 0.0
    assert not any(grad is not None and bool(grad.any()) for grad in grads.values())


def test_the_plain_way_takes_no_shortcut(monkeypatch):
    task, seen = make_task(distill=False), []
    batch = make_batch(image_size=task.model.image_size)
    real = task.model.fuse

    def fuse(image, text, **how):
        seen.append((takes_shortcuts(), len(text.mask), not how))
        return real(image, text, **how)

    monkeypatch.setattr(task.model, "fuse", fuse)
    plain_losses(task, batch)
    size = len(batch["image"])
    rows = [size, 2 * size, size, size]  # positives, negatives, masked texts, prefixes
    assert seen == [(False, count, True) for count in rows]
    seen.clear()
    task.losses(batch)
    assert seen == [(True, 5 * size, False)]
