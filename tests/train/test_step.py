"""Clipping, the finite check, and the weighted sum."""

import pytest
import torch
from torch import nn

from triptych.core.errors import ConfigError, NonFiniteError
from triptych.distributed.engine import Engine
from triptych.train.precision import autocast
from triptych.train.step import (
    StepValues,
    backward_micro_batch,
    check_batch_keys,
    check_finite,
    clip_gradients,
    finish_backward,
)

from .toy import ToyTask, toy_batches

CPU = torch.device("cpu")


def _parameter(*grad: float) -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(len(grad)))
    parameter.grad = torch.tensor(grad)
    return parameter


def _reduced(*parameters):
    return Engine(ToyTask()).reduce(parameters, torch.zeros(1))


def test_clipping_scales_to_the_norm():
    first, second = _parameter(3.0, 0.0), _parameter(0.0, 4.0)
    reduced = _reduced(first, second, nn.Parameter(torch.zeros(2)))
    assert reduced.norm.item() == 5.0
    clip_gradients(reduced.gradients, 5.0, 2.5)
    torch.testing.assert_close(first.grad, torch.tensor([1.5, 0.0]), rtol=1e-6, atol=0)
    torch.testing.assert_close(second.grad, torch.tensor([0.0, 2.0]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("max_norm", [10.0, None])
def test_a_small_gradient_is_left_alone(max_norm):
    parameter = _parameter(3.0, 4.0)
    clip_gradients([parameter.grad], 5.0, max_norm)
    assert torch.equal(parameter.grad, torch.tensor([3.0, 4.0]))


@pytest.mark.parametrize("max_norm", [2.5, 10.0, None])
def test_the_loss_scale_is_undone(max_norm):
    parameter = _parameter(24.0, 32.0)
    clip_gradients([parameter.grad], 5.0, max_norm, scale=8.0)
    expected = torch.tensor([1.5, 2.0] if max_norm == 2.5 else [3.0, 4.0])
    torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_clipping_per_parameter_scales_each_gradient_to_the_norm(scale):
    large, small, still = (
        _parameter(3.0 * scale, 4.0 * scale),
        _parameter(0.5 * scale, 0.75 * scale),
        _parameter(0.0, 0.0),
    )
    engine = Engine(ToyTask())
    reduced = engine.reduce([large, nn.Parameter(torch.zeros(2)), small, still], torch.zeros(1))
    clip_gradients(reduced.gradients, engine.norms(reduced) / scale, 2.5, scale=scale)
    torch.testing.assert_close(large.grad, torch.tensor([1.5, 2.0]))
    torch.testing.assert_close(small.grad, torch.tensor([0.5, 0.75]))
    assert not still.grad.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_culprit_of_a_bad_norm_is_named(bad):
    good, culprit = _parameter(1.0, 2.0), _parameter(0.0, bad)
    norm = _reduced(good, culprit).norm.item()
    values = StepValues(losses={"itc": 1.0}, total=1.0, grad_norm=norm)
    with pytest.raises(NonFiniteError, match="step 4: the gradient of culprit is not finite"):
        check_finite(values, [("good", good), ("culprit", culprit)], step=4, last_checkpoint=None)


def test_an_overflowing_norm_of_finite_gradients_is_told_apart():
    huge = _parameter(3e38, 3e38)
    values = StepValues(losses={}, total=1.0, grad_norm=_reduced(huge).norm.item())
    with pytest.raises(NonFiniteError, match="the global gradient norm overflows"):
        check_finite(values, [("huge", huge)], step=1, last_checkpoint=None)


def test_the_gradient_is_that_of_the_weighted_sum_of_the_active_losses():
    task = ToyTask(dropout=0.0)
    batch = next(toy_batches(0))
    losses = task.losses(batch, active=frozenset({"itm", "itc"}))
    (0.25 * (0.5 * losses["itm"] + 3.0 * losses["itc"])).backward()
    expected = task.model.head.weight.grad.clone()
    task.modules.zero_grad()
    values = backward_micro_batch(
        Engine(task), batch, {"itm": 0.5, "itc": 3.0}, share=0.25, context=autocast(CPU, "fp32")
    )
    torch.testing.assert_close(task.model.head.weight.grad, expected)
    assert values["total"].item() == pytest.approx(
        0.5 * losses["itm"].item() + 3.0 * losses["itc"].item(), rel=1e-6
    )


class _ExtraKeyTask(ToyTask):
    def losses(self, batch, *, active):
        losses = super().losses(batch, active=active)
        return losses | {"itm_accuracy": torch.tensor(0.75)}


def test_an_extra_key_is_reported_and_not_trained():
    batch, context = next(toy_batches(0)), autocast(CPU, "fp32")
    values = backward_micro_batch(
        Engine(_ExtraKeyTask()), batch, {"itm": 1.0}, share=1.0, context=context
    )
    assert values["itm_accuracy"].item() == 0.75
    assert torch.equal(values["total"], values["itm"])


def test_a_missing_loss_and_a_missing_batch_key_are_named():
    task, batch = ToyTask(), next(toy_batches(0))
    with pytest.raises(ConfigError, match=r"no loss for \['mlm'\]"):
        backward_micro_batch(
            Engine(task), batch, {"itm": 1, "mlm": 1}, share=1.0, context=autocast(CPU, "fp32")
        )
    with pytest.raises(ConfigError, match=r"reads \['label'\]"):
        check_batch_keys(task.batch_keys, {"image": batch["image"]})


def test_values_are_means_over_micro_batches():
    one = {"itc": torch.tensor(1.0), "total": torch.tensor(2.0)}
    two = {"itc": torch.tensor(2.0), "total": torch.tensor(5.0)}
    engine, parameter = Engine(ToyTask()), _parameter(36.0)
    reduced, values = finish_backward(engine, [parameter], [one, two], scale=4.0)
    assert values == StepValues({"itc": 1.5}, 3.5, 9.0)
    assert [gradient.item() for gradient in reduced.gradients] == [36.0]
