"""The evidence lower bound's parts on paper and by numerical integration; codes counted by hand."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from triptych.objectives.dvae import (
    annealed,
    code_balance,
    code_kl,
    code_usage,
    gumbel_softmax,
    logit_laplace_nll,
)


def one_pixel(x, location, log_scale):
    values = (torch.full((1, 3, 1, 1), float(v)) for v in (x, location, log_scale))
    return logit_laplace_nll(*values).item()


@pytest.mark.parametrize(("location", "log_scale"), [(0.0, 0.0), (1.5, -0.7), (-0.4, 0.3)])
def test_density_integrates_to_one(location, log_scale):
    edges = np.linspace(0, 1, 2001)
    middles = (edges[1:] + edges[:-1]) / 2
    density = [math.exp(-one_pixel(x, location, log_scale)) for x in middles]
    assert np.mean(density) == pytest.approx(1, abs=2e-3)


def test_likelihood_on_paper():
    # x = 3/4 has logit ln 3; at μ = ln 3 + 2 and b = 2 the exponent is -1; 2b·x(1 - x) = 3/4
    expected = 1 + math.log(0.75)
    assert one_pixel(0.75, math.log(3) + 2, math.log(2)) == pytest.approx(expected, rel=1e-5)


def test_likelihood_gradient():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 2, 2) * 0.8 + 0.1
    location = torch.randn(1, 3, 2, 2, requires_grad=True)
    log_scale = torch.randn(1, 3, 2, 2, requires_grad=True)
    logit_laplace_nll(x, location, log_scale).backward()
    distance = torch.logit(x) - location.detach()
    b = log_scale.detach().exp()
    torch.testing.assert_close(location.grad, -distance.sign() / b / 12)
    torch.testing.assert_close(log_scale.grad, (1 - distance.abs() / b) / 12)


def test_divergence_of_undecided_and_of_sure_places():
    undecided, sure = torch.zeros(2, 8, 1, 3), torch.zeros(2, 8, 1, 3)
    sure[:, 5] = 1e4
    assert code_kl(undecided).item() == pytest.approx(0, abs=1e-6)
    assert code_kl(sure).item() == pytest.approx(math.log(8))
    half = torch.tensor([0.0, 0.0, -1e4, -1e4]).view(1, 4, 1, 1)  # two of four: ln 2
    assert code_kl(half).item() == pytest.approx(math.log(2))
    assert code_kl(torch.cat([half, half * 0])).item() == pytest.approx(math.log(2) / 2)


def test_balance_asks_for_all_codes_not_for_doubt():
    sure = torch.full((1, 4, 1, 4), -1e4)
    sure[0, range(4), 0, range(4)] = 0  # each place its own code
    assert code_balance(sure).item() == pytest.approx(0, abs=1e-6)
    one = torch.full((1, 4, 1, 4), -1e4)
    one[:, 2] = 0
    assert code_balance(one).item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("function", [code_kl, code_balance])
def test_very_sure_places_have_finite_gradients(function):
    logits = torch.zeros(1, 3, 1, 2)
    logits[:, 0] = 1e4
    logits.requires_grad_()
    function(logits).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("function", [code_kl, code_balance])
def test_divergence_gradients(function):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 1, 2, dtype=torch.float64, requires_grad=True)

    def double(x):
        q = torch.softmax(x, 1)
        q = q if function is code_kl else q.mean((0, 2, 3), keepdim=True)
        return (q * (q * 3).log()).sum(1).mean()

    assert gradcheck(double, logits)
    mine = torch.autograd.grad(function(logits), logits)[0]
    theirs = torch.autograd.grad(double(logits), logits)[0]
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_draws_have_the_logits_frequencies():
    torch.manual_seed(0)
    logits = torch.tensor([0.0, math.log(2), math.log(5)]).view(1, 3, 1, 1).expand(1, 3, 100, 100)
    drawn = gumbel_softmax(logits, 0.5)
    torch.testing.assert_close(drawn.sum(1), torch.ones(1, 100, 100))
    shares = torch.bincount(drawn.argmax(1).flatten(), minlength=3) / 10_000
    torch.testing.assert_close(shares, torch.tensor([1, 2, 5]) / 8, atol=0.015, rtol=0)
    assert gumbel_softmax(logits, 1 / 16).amax(1).mean() > 0.95  # nearly one-hot
    assert gumbel_softmax(logits, 10.0).amax(1).mean() < 0.5


def test_usage_on_paper():
    perplexity, used = code_usage(torch.tensor([[3, 3], [1, 0]]), 8)
    # shares 1/2, 1/4, 1/4: entropy 1.5 bits
    assert perplexity.item() == pytest.approx(2**1.5)
    assert used.item() == pytest.approx(3 / 8)


def test_annealing_is_a_half_cosine():
    values = [annealed(1.0, 0.2, step, 10) for step in (0, 5, 10, 99)]
    assert values == pytest.approx([1.0, 0.6, 0.2, 0.2])
