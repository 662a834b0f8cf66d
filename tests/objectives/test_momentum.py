"""The moving average, written out."""

import torch
from torch import nn

from triptych.objectives.momentum import MomentumEncoder


def test_update_is_the_published_formula_for_every_tensor():
    torch.manual_seed(0)
    source = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    teacher = MomentumEncoder(source, momentum=0.9)
    before = [p.clone() for p in teacher.module.parameters()]
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter))
    source[1].running_mean.fill_(3.0)
    teacher.update(source)
    for old, new, now in zip(before, source.parameters(), teacher.module.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * new)
    assert teacher.module[1].running_mean.tolist() == [3.0, 3.0]


def test_the_copy_is_apart_without_gradient_and_always_in_eval_mode():
    source = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    teacher = nn.ModuleDict({"teacher": MomentumEncoder(source, 0.5)}).train()["teacher"]
    assert not teacher.module.training
    assert not any(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        source[0].weight.zero_()
    assert bool(teacher.module[0].weight.any())
    assert all(p.requires_grad for p in source.parameters())
