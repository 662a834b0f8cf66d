"""Twins on the host: what is derived from twins has one, and selects the same."""

import gc

import torch

from triptych.core import host
from triptych.core.host import alike, keep_twin, on_host, select


def test_a_tensor_without_a_twin_is_copied():
    tensor = torch.arange(3)
    assert on_host(tensor) is tensor  # on a CPU it is its own


def test_what_is_computed_of_twins_has_one():
    first, second = torch.arange(3), torch.tensor([True, False, True])
    assert on_host(alike(torch.add, first, second)) is not None
    twins = first.clone(), second.clone()
    keep_twin(first, twins[0])
    both = alike(lambda x, m: x.masked_fill(~m, -1), first, second)
    assert on_host(both) is both  # one of the two has none
    keep_twin(second, twins[1])
    both = alike(lambda x, m: x.masked_fill(~m, -1), first, second)
    assert on_host(both) is not both and torch.equal(on_host(both), both)
    keep_twin(first, first)
    assert on_host(first) is twins[0]


def test_twins_go_with_their_tensors():
    before = len(host._twins)
    tensor = torch.zeros(2)
    keep_twin(tensor, torch.zeros(2))
    assert len(host._twins) == before + 1
    del tensor
    gc.collect()
    assert len(host._twins) == before


def test_select_is_boolean_indexing_with_its_gradient():
    x = torch.randn(3, 4, 5, requires_grad=True)
    mask = torch.rand(3, 4) < 0.5
    weight = torch.randn(int(mask.sum()), 5)
    found, plain = select(x, mask), x[mask]
    assert torch.equal(found, plain)
    first, second = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, plain))
    assert torch.equal(first, second)
    labels = torch.arange(12).view(3, 4)
    assert torch.equal(select(labels, mask), labels[mask])
    assert select(x, torch.zeros(3, 4, dtype=torch.bool)).shape == (0, 5)
