"""Parameter groups, and AdamW's first step worked by hand."""

from io import StringIO

import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from triptych.train.config import OptimConfig
from triptych.train.optim import (
    ParameterGroup,
    build_optimizer,
    group_parameters,
    has_weight_decay,
)

from .toy import ToyTask, is_vision


def test_each_trainable_parameter_is_in_exactly_one_group():
    task = ToyTask()
    groups = group_parameters(task.modules.named_parameters(), OptimConfig(), is_vision)
    names = {group.name: sorted(name for name, _ in group.parameters) for group in groups}
    assert names == {
        "vision_decay": ["model.visual_encoder.weight"],
        "vision_no_decay": ["model.visual_encoder.bias"],
        "rest_decay": ["model.head.weight"],
        "rest_no_decay": [
            "model.head.bias",
            "model.logit_scale",
            "model.norm.bias",
            "model.norm.weight",
            "model.position_embedding",
        ],
    }
    assert {group.name: (group.peak_lr, group.weight_decay) for group in groups} == {
        "vision_decay": (1e-5, 0.02),
        "vision_no_decay": (1e-5, 0.0),
        "rest_decay": (1e-4, 0.02),
        "rest_no_decay": (1e-4, 0.0),
    }


@pytest.mark.parametrize(
    ("name", "decays"),
    [
        ("model.text.position_embeddings.weight", False),
        ("model.visual_encoder.positional_embedding", False),
        ("model.visual_encoder.class_embedding", False),
        ("model.cls_token", False),
        ("model.text_embedding.token_type.weight", False),
        ("logit_scale", False),
        ("temperature", False),
        ("model.text.word_embeddings.weight", True),
        ("model.composition.weight", True),
    ],
)
def test_decay_by_name_for_matrices(name, decays):
    assert has_weight_decay(name, nn.Parameter(torch.zeros(2, 2))) is decays


def test_a_classifier_takes_its_own_rate():
    named = [
        ("head.0.weight", nn.Parameter(torch.zeros(2, 2))),
        ("header", nn.Parameter(torch.zeros(2))),
    ]
    config = OptimConfig(learning_rate=3e-5, head_learning_rate_factor=20)
    groups = {group.name: group for group in group_parameters(named, config, is_vision)}
    assert {name: [n for n, _ in group.parameters] for name, group in groups.items()} == {
        "head_decay": ["head.0.weight"],
        "rest_no_decay": ["header"],
    }
    assert groups["head_decay"].peak_lr == pytest.approx(6e-4)
    assert groups["rest_no_decay"].peak_lr == 3e-5


def test_a_tied_tensor_is_optimised_once():
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    modules = nn.ModuleDict({"first": first, "second": second})
    groups = group_parameters(modules.named_parameters(), OptimConfig(), is_vision)
    assert [name for group in groups for name, _ in group.parameters] == ["first.weight"]


def test_first_step_is_decoupled_adamw():
    """With bias correction the first step is lr * sign(g), after p has shrunk by lr * decay."""
    weight = nn.Parameter(torch.tensor([[2.0, -4.0]]))
    bias = nn.Parameter(torch.tensor([2.0]))
    config = OptimConfig(learning_rate=0.1, weight_decay=0.5, eps=1e-12)
    optimizer = build_optimizer(
        group_parameters([("head.weight", weight), ("head.bias", bias)], config, is_vision), config
    )
    weight.grad, bias.grad = torch.tensor([[3.0, -7.0]]), torch.tensor([0.2])
    optimizer.step()
    expected = torch.tensor([[2.0 * 0.95 - 0.1, -4.0 * 0.95 + 0.1]])
    torch.testing.assert_close(weight.detach(), expected)
    torch.testing.assert_close(bias.detach(), torch.tensor([1.9]))


def group_table(groups: list[ParameterGroup]) -> Table:
    """Return a table of the groups for the terminal: tensors, numbers, peak rate, decay."""
    table = Table("group", "tensors", "parameters", "peak learning rate", "weight decay")
    for group in groups:
        size = sum(parameter.numel() for _, parameter in group.parameters)
        table.add_row(
            group.name,
            str(len(group.parameters)),
            f"{size:,}",
            f"{group.peak_lr:g}",
            f"{group.weight_decay:g}",
        )
    return table


def test_the_table_counts_parameters():
    console = Console(file=StringIO(), width=120)
    console.print(
        group_table(
            group_parameters([("w", nn.Parameter(torch.zeros(40, 50)))], OptimConfig(), is_vision)
        )
    )
    text = console.file.getvalue()
    assert "rest_decay" in text
    assert "2,000" in text


def test_low_rank_matrices_have_rates_of_their_own():
    names = (
        "model.text.blocks.0.up.lora_A",
        "model.vision.blocks.0.up.lora_B",
        "model.head.lora_A",
    )
    named = [(name, nn.Parameter(torch.zeros(4, 6))) for name in names]
    frozen = ("model.text.blocks.3.weight", nn.Parameter(torch.zeros(4, 4), requires_grad=False))

    def rates(config):
        found = group_parameters([*named, frozen], config, lambda name: ".vision." in name)
        return {name: group.peak_lr for group in found for name, _ in group.parameters}

    rate = {"learning_rate": 1e-3, "vision_learning_rate": 1e-4, "lora_learning_rate_factor": 5.0}
    assert rates(OptimConfig(**rate)) == pytest.approx(dict(zip(names, (5e-3, 5e-4, 5e-3))))
    muon = OptimConfig(**rate, muon_learning_rate=2e-3)
    assert rates(muon) == pytest.approx(dict(zip(names, (1e-2, 1e-2, 5e-3))))
    decayed = rates(OptimConfig(**rate, layer_decay=0.5))  # of four blocks, frozen ones counted
    assert decayed[names[0]] == pytest.approx(5e-3 / 16)
    assert decayed[names[1]] == pytest.approx(5e-4 / 2)
