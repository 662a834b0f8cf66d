"""The block's order of norms, its masks and its activation."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from triptych.core.errors import ConfigError
from triptych.nn.attention import key_bias
from triptych.nn.block import Block, BlockConfig, FeedForward
from triptych.nn.init import init_weights
from triptych.nn.kv_cache import DecoderCache
from triptych.nn.packing import TokenGrid


def _config(**changes):
    return BlockConfig(**({"embed_dim": 8, "num_heads": 2, "dropout": 0.0} | changes))


def test_pre_norm_block_equals_torchs_encoder_layer():
    torch.manual_seed(0)
    mine = Block(_config(pre_norm=True, norm_eps=1e-5)).eval()
    theirs = _torch_layer(mine, norm_first=True)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(mine(x), theirs(x), atol=1e-6, rtol=1e-5)


def test_post_norm_block_equals_torchs_encoder_layer():
    torch.manual_seed(0)
    mine = Block(_config(pre_norm=False, norm_eps=1e-5)).eval()
    theirs = _torch_layer(mine, norm_first=False)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(mine(x), theirs(x), atol=1e-6, rtol=1e-5)


def _torch_layer(mine, *, norm_first):
    theirs = nn.TransformerEncoderLayer(
        8, 2, 32, activation="gelu", batch_first=True, norm_first=norm_first
    )
    pairs = {
        "attention.qkv": "self_attn.in_proj_",
        "attention.out": "self_attn.out_proj.",
        "attention_norm": "norm1.",
        "mlp.up": "linear1.",
        "mlp.down": "linear2.",
        "mlp_norm": "norm2.",
    }
    state = mine.state_dict()
    theirs.load_state_dict(
        {
            theirs_name + kind: state[f"{name}.{kind}"]
            for name, theirs_name in pairs.items()
            for kind in ("weight", "bias")
        }
    )
    return theirs.eval()


def test_post_norm_block_with_memory_equals_torchs_decoder_layer():
    torch.manual_seed(0)
    mine = Block(_config(norm_eps=1e-5), memory_dim=8).eval()
    theirs = nn.TransformerDecoderLayer(8, 2, 32, activation="gelu", batch_first=True).eval()
    cross = mine.cross_attention
    state = mine.state_dict()
    pairs = {
        "attention.qkv": "self_attn.in_proj_",
        "attention.out": "self_attn.out_proj.",
        "attention_norm": "norm1.",
        "cross_attention.out": "multihead_attn.out_proj.",
        "cross_norm": "norm2.",
        "mlp.up": "linear1.",
        "mlp.down": "linear2.",
        "mlp_norm": "norm3.",
    }
    loaded = {
        theirs_name + kind: state[f"{name}.{kind}"]
        for name, theirs_name in pairs.items()
        for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):
        loaded[f"multihead_attn.in_proj_{kind}"] = torch.cat(
            [getattr(cross.query, kind), getattr(cross.key_value, kind)]
        )
    theirs.load_state_dict(loaded)
    x, memory = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
    found = mine(x, memory=cross.project(memory))
    torch.testing.assert_close(found, theirs(x, memory), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_padding_does_not_reach_real_tokens(pre_norm):
    torch.manual_seed(0)
    block = Block(_config(pre_norm=pre_norm)).eval()
    x, mask = torch.randn(1, 5, 8), torch.tensor([[True, True, True, False, False]])
    other = x.clone()
    other[:, 3:] = 9.0
    bias = key_bias(mask)
    torch.testing.assert_close(block(x, bias)[:, :3], block(other, bias)[:, :3])
    torch.testing.assert_close(block(x, bias)[:, :3], block(x[:, :3]))


@pytest.mark.parametrize("pre_norm", [True, False])
def test_step_equals_forward_on_one_token(pre_norm):
    torch.manual_seed(0)
    block = Block(_config(pre_norm=pre_norm), memory_dim=8).eval()
    x, memory = torch.randn(2, 1, 8), block.cross_attention.project(torch.randn(2, 3, 8))
    cache = DecoderCache(1)
    cache.positions(*x.shape[:2], x.device)
    found = block.step(x, cache.layers[0], memory)
    torch.testing.assert_close(found, block(x, None, memory), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("num_tokens", [3, 50])  # fewer and more states than weights
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_feed_forward_from_the_definition(activation, num_tokens):
    torch.manual_seed(0)
    mlp = FeedForward(_config(activation=activation))
    x = torch.randn(num_tokens, 8)
    hidden = x @ mlp.up.weight.T + mlp.up.bias
    if activation == "quick_gelu":
        hidden = hidden * torch.sigmoid(1.702 * hidden)
    else:
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    expected = hidden @ mlp.down.weight.T + mlp.down.bias
    torch.testing.assert_close(mlp(x), expected)


def test_gradients_agree_with_finite_differences():
    torch.manual_seed(0)
    block = Block(BlockConfig(embed_dim=4, num_heads=2, mlp_ratio=1.0), memory_dim=4)
    init_weights(block, 0.5)
    block = block.double().eval()
    x = torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda y, m: block(y, None, block.cross_attention.project(m)), (x, memory)
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("embed_dim", 0), ("num_heads", 3), ("dropout", 1.0), ("attention_dropout", -0.1)],
)
def test_impossible_sizes_name_the_field(field, value):
    with pytest.raises(ConfigError, match=field):
        _config(**{field: value})


@pytest.mark.parametrize("pre_norm", [True, False])
def test_reading_a_few_tokens_equals_forward_at_their_positions(pre_norm):
    torch.manual_seed(0)
    block = Block(_config(pre_norm=pre_norm)).eval()
    x = torch.randn(2, 5, 8, requires_grad=True)
    bias = key_bias(torch.tensor([[True] * 5, [True, True, True, False, False]]))
    positions = torch.tensor([[3, 0, 3], [2, 1, 0]])
    every, few = block(x, bias), block.read(x, positions, bias)
    rows = torch.arange(2)[:, None]
    torch.testing.assert_close(few, every[rows, positions], atol=1e-6, rtol=1e-5)
    inputs = [x, *block.parameters()]
    expected = torch.autograd.grad(every[rows, positions].square().sum(), inputs)
    found = torch.autograd.grad(few.square().sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_activations_give_the_same_bits(dropout):
    torch.manual_seed(0)
    block = Block(_config(dropout=dropout, attention_dropout=dropout), memory_dim=8)
    x, memory = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 7, 8)
    grid = TokenGrid(2, 5)
    results = []
    for mode in ("none", "selective", "full"):
        block.recompute = mode
        torch.manual_seed(1)
        projected = block.cross_attention.project(memory)
        y = block(x, memory=projected)
        joined = block.joint(y, y.flatten(0, 1), torch.zeros(2, 1, 1, 10), grid)
        loss = joined.square().sum()
        inputs = [x, *block.parameters()]
        results.append([loss, *torch.autograd.grad(loss, inputs)])
    for values in zip(*results, strict=True):
        assert all(torch.equal(values[0], other) for other in values[1:])


def test_recomputing_saves_less():
    block = Block(_config())
    x, saved = torch.randn(2, 5, 8, requires_grad=True), []

    def keep(tensor):
        saved[-1] += tensor.numel()
        return tensor

    for mode in ("none", "full"):
        block.recompute = mode
        saved.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            block(x)
    assert saved[1] == x.numel() < saved[0] / 5  # the input alone


class Counted(TorchDispatchMode):
    """Counts the operations that run while entered."""

    def __init__(self):
        super().__init__()
        self.runs = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.runs[function] = self.runs.get(function, 0) + 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("mode", "linear", "scores", "norms"),
    [("none", 0, 0, 0), ("selective", 0, 1, 2), ("full", 3, 1, 2)],  # nobody reads the last product
)
def test_what_the_backward_pass_runs_again(mode, linear, scores, norms):
    block = Block(_config(pre_norm=True, attention_dropout=0.0))
    block.recompute = mode
    out = block(torch.randn(2, 5, 8, requires_grad=True))
    with Counted() as counted:
        out.sum().backward()
    ops = torch.ops.aten.addmm, torch.ops.aten.baddbmm, torch.ops.aten.native_layer_norm
    found = [counted.runs.get(op.default, 0) for op in ops]
    assert found[0] == linear
    assert found[1] == scores
    assert found[2] == norms
