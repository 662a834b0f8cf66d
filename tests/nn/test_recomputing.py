"""Results that the backward pass computes again: exact, and really not kept."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from triptych.nn.block import Block, BlockConfig, FeedForward
from triptych.nn.recompute import recomputing


def _parts():
    torch.manual_seed(0)
    return nn.Linear(6, 24), nn.Linear(24, 6), torch.randn(2, 5, 6, requires_grad=True)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("make", [F.gelu, nn.LayerNorm(24)], ids=["gelu", "norm"])
def test_values_and_gradients_are_exact(make, autocast):
    up, down, x = _parts()
    inputs = [x, *up.parameters(), *down.parameters()]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        plain = down(make(up(x)))
        found = recomputing(make, up(x), down)
    assert found.dtype == plain.dtype
    assert torch.equal(found, plain)
    expected = torch.autograd.grad(plain.float().square().sum(), inputs)
    for one, other in zip(
        torch.autograd.grad(found.float().square().sum(), inputs), expected, strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("forgets", [False, True])
def test_the_result_is_gone_after_the_forward_pass(forgets):
    up, down, x = _parts()
    made = []

    def make(states):
        result = F.gelu(states)
        made.append(weakref.ref(result.untyped_storage()))
        return result

    out = recomputing(make, up(x), down) if forgets else down(make(up(x)))
    gc.collect()
    assert (made[0]() is None) is forgets
    out.sum().backward()
    assert len(made) == (2 if forgets else 1)


def test_without_gradients_nothing_runs_twice():
    up, down, x = _parts()
    calls = []

    def make(states):
        calls.append(1)
        return F.gelu(states)

    with torch.no_grad():
        recomputing(make, up(x), down)
    assert len(calls) == 1


def test_a_block_that_recomputes_what_is_cheap_has_equal_gradients():
    torch.manual_seed(0)
    config = BlockConfig(
        embed_dim=8, num_heads=2, pre_norm=True, dropout=0.0, attention_dropout=0.0
    )
    block, x = Block(config), torch.randn(2, 5, 8, requires_grad=True)
    inputs = [x, *block.parameters()]
    results = []
    for recompute_cheap in (False, True):
        block.recompute_cheap = recompute_cheap
        out = block(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_block_that_is_computed_again_has_nothing_to_forget():
    block = Block(BlockConfig(embed_dim=8, num_heads=2, pre_norm=True))
    assert isinstance(block.mlp, FeedForward)
    block.recompute_cheap = True
    assert block.mlp.recompute_cheap
    for mode in ("selective", "full"):
        block.recompute = mode
        assert block.recompute_cheap
        assert not block.mlp.recompute_cheap
    block.recompute = "none"
    assert block.mlp.recompute_cheap
