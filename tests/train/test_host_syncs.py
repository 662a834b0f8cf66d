"""How often a training step waits for its device: once, to read its losses and norm."""

from collections import Counter

import pytest
import torch

from benchmarks.speed.host_syncs import RECIPES, PlayedDevice, steps_of, write_pairs
from triptych.core.host import keep_twin, on_host, select


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_waits_once(recipe, pairs, tmp_path):
    waits, losses = steps_of(recipe, pairs, tmp_path / "played", played=True)
    assert waits == [Counter(tolist=1)] * 3
    plain = steps_of(recipe, pairs, tmp_path / "plain", played=False)[1]
    assert losses == plain  # bitwise


def test_the_counter_sees_what_it_counts():
    device = PlayedDevice()
    tensor, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    with device.counting():
        device.add(tensor)
        device.add(mask)
        for act in (
            lambda: tensor.sum().item(),
            lambda: tensor.tolist(),
            lambda: bool((tensor > 0).any()),
            lambda: tensor.cpu(),
            lambda: (tensor * 2).numpy(),
            lambda: mask.nonzero(),
            lambda: tensor[mask],
            lambda: int(tensor.max()),
            lambda: torch.unique(tensor),
        ):
            before = sum(device.waits.values())
            act()
            assert sum(device.waits.values()) == before + 1
        keep_twin(mask, mask.clone())
        before = sum(device.waits.values())
    on_host(mask)
    assert torch.equal(select(tensor, mask), tensor[[0, 2]])
