"""Attention against plain loops, and its two kernels against each other."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.plain import without_shortcuts
from triptych.nn import attention
from triptych.nn.attention import (
    CrossAttention,
    KeyValue,
    MemoryStates,
    SelfAttention,
    attend,
    causal_bias,
    key_bias,
    use_sdpa,
)
from triptych.nn.kv_cache import DecoderCache
from triptych.nn.packing import TokenGrid

pytestmark = pytest.mark.usefixtures("packed_at_any_width")


def _loop_attention(query, key, value, bias):
    """Return softmax(QKᵀ/√K + bias)V with NumPy loops; arrays (B, H, L, K) in float64."""
    out = np.zeros((*query.shape[:3], value.shape[3]))
    for b, h, i in np.ndindex(query.shape[:3]):
        scores = [
            query[b, h, i] @ key[b, h, j] / math.sqrt(query.shape[3]) + bias[b, 0, 0, j]
            for j in range(key.shape[2])
        ]
        weights = np.exp(np.array(scores) - max(scores))
        out[b, h, i] = (weights / weights.sum()) @ value[b, h]
    return out


@pytest.mark.parametrize("sdpa", [True, False])
def test_attend_equals_a_loop_with_either_kernel(monkeypatch, sdpa):
    torch.manual_seed(0)
    monkeypatch.setattr(attention, "use_sdpa", lambda *_: sdpa)
    query, key, value = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 6, 5), torch.randn(2, 3, 6, 5)
    mask = torch.tensor([[True] * 6, [True, True, False, True, False, False]])
    expected = _loop_attention(
        query.double().numpy(), key.double().numpy(), value.double().numpy(), key_bias(mask).numpy()
    )
    found = attend(query, key, value, key_bias(mask))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_texts_of_an_image_share_what_it_takes_from_itself(monkeypatch, scale):
    torch.manual_seed(0)
    layer = SelfAttention(8, 2)
    image, text = scale * torch.randn(2, 20, 8), scale * torch.randn(8, 8)
    mask = torch.tensor(
        [[True] * 3, [True, False, False], [True, True, False], [True, True, False]]
    )
    grid, bias = TokenGrid.of(mask, 8), key_bias(nn.functional.pad(mask, (20, 0), value=True))
    index = torch.tensor([1, 0, 1, 1])
    found, products = [], []
    for shares in (True, False):
        if not shares:
            monkeypatch.setattr(attention, "_shares_image", lambda *_: False)
        with FlopCounterMode(display=False) as counter:
            found.append(layer.joint(image, text, bias, grid, index))
        products.append(sum(counter.get_flop_counts()["Global"].values()))
    torch.testing.assert_close(found[0], found[1], atol=1e-6 * scale, rtol=1e-5)
    assert products[0] < products[1]


@pytest.mark.parametrize("num_keys", [5, 31, 32, 33, 60, 257, 287])
def test_bf16_weights_equal_those_of_float32(num_keys):
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 3, 4), torch.randn(2, 2, num_keys, 4)
    value = torch.randn(2, 2, num_keys, 4)
    expected = attend(query, key, value)
    found = attend(*(x.bfloat16() for x in (query, key, value)))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)


def test_a_masked_key_counts_for_nothing():
    query, key, value = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, 4)
    bias = key_bias(torch.tensor([[True, True, False]]))
    without = attend(query, key[:, :, :2], value[:, :, :2])
    key[:, :, 2], value[:, :, 2] = 50.0, 1e6
    torch.testing.assert_close(attend(query, key, value, bias), without)


def test_kernel_rule_follows_the_measurement():
    short, long = torch.zeros(1, 1, 8, 4), torch.zeros(1, 1, 257, 4)
    assert not use_sdpa(short, short)
    assert use_sdpa(short, long)
    assert not use_sdpa(short.bfloat16(), long.bfloat16())
    assert not use_sdpa(short, long, dropout=0.1)
    assert use_sdpa(short.to("meta"), short.to("meta"), dropout=0.1)


def test_biases_on_paper():
    assert key_bias(torch.tensor([[True, False]])).tolist() == [[[[0.0, -1e4]]]]
    assert causal_bias(2, torch.device("cpu")).tolist() == [[[[0.0, -1e4], [0.0, 0.0]]]]


def test_self_attention_equals_torch():
    torch.manual_seed(0)
    mine = SelfAttention(12, 3)
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": mine.qkv.weight,
            "in_proj_bias": mine.qkv.bias,
            "out_proj.weight": mine.out.weight,
            "out_proj.bias": mine.out.bias,
        }
    )
    x = torch.randn(2, 5, 12)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    expected, _ = theirs(x, x, x, key_padding_mask=~mask)
    torch.testing.assert_close(mine(x, key_bias(mask)), expected, atol=1e-6, rtol=1e-5)


def test_cross_attention_equals_torch_and_projects_once():
    torch.manual_seed(0)
    mine = CrossAttention(12, 3, memory_dim=7)
    theirs = torch.nn.MultiheadAttention(12, 3, kdim=7, vdim=7, batch_first=True)
    key_weight, value_weight = mine.key_value.weight.chunk(2)
    theirs.load_state_dict(
        {
            "q_proj_weight": mine.query.weight,
            "k_proj_weight": key_weight,
            "v_proj_weight": value_weight,
            "in_proj_bias": torch.cat([mine.query.bias, mine.key_value.bias]),
            "out_proj.weight": mine.out.weight,
            "out_proj.bias": mine.out.bias,
        }
    )
    x, memory = torch.randn(3, 4, 12), torch.randn(2, 6, 7)
    rows = torch.tensor([1, 0, 1])
    expected, _ = theirs(x, memory[rows], memory[rows])
    projected = mine.project(memory)
    torch.testing.assert_close(mine(x, projected.select(rows)), expected, atol=1e-6, rtol=1e-5)
    halves = mine.project(memory[:, :2]).cat(mine.project(memory[:, 2:]))
    torch.testing.assert_close(halves.key, projected.key)
    torch.testing.assert_close(halves.value, projected.value)


def _cross(dropout=0.0):
    torch.manual_seed(0)
    module = CrossAttention(12, 3, memory_dim=7, dropout=dropout)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("masked", [False, True])
def test_states_read_unprojected_give_the_same(masked, dropout):
    module = _cross(dropout)
    x, memory = torch.randn(2, 4, 12), torch.randn(2, 6, 7, requires_grad=True)
    mask = torch.tensor([[True] * 6, [True, True, False, False, True, False]])
    bias = key_bias(mask) if masked else None
    results = []
    for ready in (MemoryStates(memory), module.project(memory)):
        torch.manual_seed(3)  # the same weights are dropped
        out = module(x, ready, bias)
        results.append((out, torch.autograd.grad(out.sum(), [memory, *module.parameters()])))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-5)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_cheaper_way_to_read_a_memory_is_counted():
    # Width 12, 3 heads, 7 wide memory of 100 tokens: projecting costs 100·12·(7 + L), reading the
    # states L·7·(12 + 300): equal at L = 8400 / 984 = 8.5.
    module, memory = _cross(), torch.randn(2, 100, 7)
    assert isinstance(module.prepare(memory, 8), MemoryStates)
    assert isinstance(module.prepare(memory, 9), KeyValue)
    with without_shortcuts():
        assert isinstance(module.prepare(memory, 8), KeyValue)
    assert isinstance(module.to("meta").prepare(memory.to("meta"), 8), KeyValue)


def test_memory_states_select_rows():
    states = torch.arange(6.0).reshape(2, 3, 1)
    assert MemoryStates(states).select(torch.tensor([1, 1])).states[:, 0, 0].tolist() == [3, 3]


def test_steps_with_a_cache_equal_the_causal_forward():
    torch.manual_seed(0)
    module = SelfAttention(8, 2)
    x = torch.randn(3, 5, 8)
    expected = module(x, causal_bias(5, x.device))
    cache, steps = DecoderCache(1), []
    for position in range(5):
        assert cache.positions(3, 1, x.device) == position
        steps.append(module.step(x[:, position, None], cache.layers[0]))
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, atol=1e-6, rtol=1e-5)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    module, x = SelfAttention(8, 2, dropout=0.5), torch.randn(1, 6, 8)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_gradients_agree_with_finite_differences(kind):
    torch.manual_seed(0)
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    if kind == "self":
        module = SelfAttention(4, 2).double()
        assert torch.autograd.gradcheck(module, (x,))
    else:
        cross = CrossAttention(4, 2, memory_dim=4).double()
        assert torch.autograd.gradcheck(lambda y: cross(y, cross.project(y)), (x,))
