"""Dropout: what it keeps, what it scales, and its gradient."""

import pytest
import torch

from triptych.nn.dropout import Dropout, dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_share_and_scale(share, dtype):
    torch.manual_seed(0)
    y = dropout(torch.ones(401, 501, dtype=dtype), share)
    values = y.unique()
    # 200,901 draws: the share is known to within 0.003 (more than 3 deviations).
    assert (y == 0).float().mean().item() == pytest.approx(share, abs=0.004)
    expected = torch.tensor([0.0, 65536 / (65536 - round(65536 * share))]).to(dtype)
    assert torch.equal(values, expected)


def test_neighbours_are_independent():
    torch.manual_seed(0)
    kept = (dropout(torch.ones(200_000), 0.5) != 0).float() - 0.5
    for distance in (1, 2, 3, 4, 8):
        product = (kept[:-distance] * kept[distance:]).mean().item() * 4
        assert product == pytest.approx(0.0, abs=0.01)


def test_gradient_flows_through_what_was_kept():
    torch.manual_seed(0)
    x = torch.randn(50, 7, requires_grad=True)
    y = dropout(x, 0.25)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, (y != 0).float() * (65536 / (65536 - 16384)))


def test_the_generator_decides():
    x = torch.ones(3, 5)
    torch.manual_seed(1)
    first = dropout(x, 0.5)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.5), first)


def test_module_drops_in_training_only():
    module, x = Dropout(0.5), torch.ones(1000)
    assert bool((module(x) == 0).any())
    assert module.eval()(x) is x
    assert dropout(x, 0.0) is x
