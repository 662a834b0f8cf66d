"""Low-rank adaptation of layers, against the merged matrix."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from triptych.core.errors import ConfigError
from triptych.core.patterns import is_factor
from triptych.nn.attention import CrossAttention
from triptych.nn.block import Block, BlockConfig
from triptych.nn.lora import LoRAConfig, LoRALinear, adapt

LORA = LoRAConfig(rank=3, alpha=5.0)
BLOCK = BlockConfig(embed_dim=16, num_heads=2, dropout=0.0, attention_dropout=0.0)


def trained(module, config=LORA):
    """Return an adapted module whose change is not zero."""
    adapt(module, config)
    for part in module.modules():
        if isinstance(part, LoRALinear):
            nn.init.normal_(part.lora_B, std=0.3)
    return module


def merged(module):
    """Return a copy of an adapted module with plain layers of W + alpha / r B A."""
    plain = copy.deepcopy(module)
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoRALinear):
                layer = nn.Linear(child.in_features, child.out_features, child.bias is not None)
                change = child.scaling * child.lora_B @ child.lora_A
                layer.weight.data = child.weight.data + change.data
                if child.bias is not None:
                    layer.bias = child.bias
                setattr(parent, name, layer)
    return plain


@pytest.mark.parametrize("change", [{}, {"activation": "quick_gelu"}, {"key_bias": False}])
@pytest.mark.parametrize("rows", [1, 64])
def test_every_way_into_a_block_is_that_of_the_merged_matrices(change, rows):
    torch.manual_seed(0)
    block = Block(replace(BLOCK, pre_norm=True, **change), memory_dim=24)
    x, memory = torch.randn(rows, 5, 16), torch.randn(rows, 7, 24)
    before = block(x, memory=memory)
    adapted = copy.deepcopy(block)
    assert len(adapt(adapted, LoRAConfig(rank=2, targets=("*",)))) == 7
    torch.testing.assert_close(adapted(x, memory=memory), before)  # B begins at zero
    trained(block, replace(LORA, targets=("*",)))
    plain = merged(block)
    torch.testing.assert_close(block(x, memory=memory), plain(x, memory=memory))
    torch.testing.assert_close(
        block.read(x, torch.tensor([[0, 3]] * rows)), plain.read(x, torch.tensor([[0, 3]] * rows))
    )
    assert not torch.allclose(block(x, memory=memory), before, atol=1e-3)


def test_cross_attention_projects_its_memory_where_keys_are_adapted():
    attention = CrossAttention(16, 2, 16)
    memory = torch.randn(1, 40, 16)
    assert not hasattr(attention.prepare(memory, 1), "key")
    trained(attention, replace(LORA, targets=("key_value",)))
    assert hasattr(attention.prepare(memory, 1), "key")


def test_names_of_weights_stay_and_a_state_goes_round():
    block = Block(BLOCK)
    names = set(block.state_dict())
    adapt(block, replace(LORA, targets=("attention", "mlp")))
    assert {name for name in block.state_dict() if not is_factor(name)} == names
    other = Block(BLOCK)
    trained(other, replace(LORA, targets=("attention", "mlp")))
    block.load_state_dict(other.state_dict())
    x = torch.randn(1, 3, 16)
    assert torch.equal(block(x), other(x))


def test_dropout_hides_inputs_from_the_change_alone():
    torch.manual_seed(0)
    modules = trained(
        nn.ModuleDict({"a": nn.Linear(64, 8)}), LoRAConfig(rank=4, dropout=0.5, targets=("a",))
    )
    layer, x = modules["a"], torch.randn(512, 64)
    kept = nn.functional.linear(x, layer.weight, layer.bias)
    in_training = layer(x) - kept
    modules.eval()
    change = layer(x) - kept
    assert not torch.allclose(in_training, change)
    torch.testing.assert_close(in_training.mean(0), change.mean(0), atol=0.5, rtol=0.5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rank": 0}, "lora.rank = 0: must be at least 1"),
        ({"rank": 4, "alpha": 0.0}, "lora.alpha"),
        ({"rank": 4, "alpha": float("nan")}, "lora.alpha"),
        ({"rank": 4, "dropout": 1.0}, "lora.dropout"),
        ({"rank": 4, "targets": ()}, "lora.targets"),
        ({"alpha": 4.0}, "lora.alpha = 4.0: must be absent without a rank"),
        ({"save": "beside"}, "lora.save"),
    ],
)
def test_settings_that_mean_nothing_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        LoRAConfig(**config)


def test_patterns_without_a_layer_and_tied_weights_are_refused():
    block = Block(BLOCK)
    with pytest.raises(ConfigError, match=r"near it are attention\.qkv"):
        adapt(block, replace(LORA, targets=("atention.qkv",)))
    with pytest.raises(ConfigError, match="matches no linear layer"):
        adapt(block, replace(LORA, targets=("attention_norm",)))
    tied = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    tied["b"].weight = tied["a"].weight
    with pytest.raises(ConfigError, match="a cannot be adapted: its weight is tied"):
        adapt(tied, replace(LORA, targets=("a",)))
