"""How often a training step waits for its device: once, to read its losses and norm.

On a CPU nothing waits, so the device is played: what `to_device` returns are copies whose twins
stay on the host, these copies, weights and everything computed from them count as the device's,
and every operation that would bring a number or a size of theirs to the host is counted.
"""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from tests.workflows.small_runs import small_run
from triptych.core.host import keep_twin, on_host, select
from triptych.data.source import DataSourceConfig
from triptych.nn import packing
from triptych.train import trainer
from triptych.workflows.run import train_run

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
READS = ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__")


class PlayedDevice(TorchDispatchMode):
    """Counts what would wait, by operation, for tensors that count as a device's."""

    def __init__(self):
        super().__init__()
        self.waits = Counter()
        self.own = WeakTensorKeyDictionary()

    def holds(self, value):
        leaves = [x for x in tree_iter(value) if isinstance(x, torch.Tensor)]
        return any(x.requires_grad or x in self.own or x.is_nested for x in leaves)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        on_device = self.holds((args, kwargs))
        masks = name in INDEXED and any(
            isinstance(x, torch.Tensor) and x.dtype is torch.bool and x in self.own
            for x in tree_iter(args[1])
        )
        if on_device and (name in WAITS or masks):
            self.waits[name] += 1
        result = function(*args, **(kwargs or {}))
        if on_device:
            tree_map_only(torch.Tensor, self.add, result)
        return result

    def add(self, tensor):
        self.own[tensor] = True
        return tensor


def watched(monkeypatch, read, device):
    """Count a method of Tensor that leads to the host without an operation of its own."""
    original = getattr(torch.Tensor, read)

    def counted(tensor, *args, **kwargs):
        before = sum(device.waits.values())
        found = original(tensor, *args, **kwargs)
        if device.holds(tensor) and sum(device.waits.values()) == before:
            device.waits[read] += 1
        return found

    monkeypatch.setattr(torch.Tensor, read, counted)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(24):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f"{number}.png")
        caption = f"a red circle left of blue square number {number} " + "and green " * (number % 3)
        lines.append(json.dumps({"image": f"{number}.png", "caption": caption}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return DataSourceConfig(path=str(folder / "pairs.jsonl"))


def steps_of(recipe, pairs, folder, monkeypatch, *, played, **train):
    """Train, and return what each step waits for, and its losses."""
    monkeypatch.setattr(packing, "PACKED_FROM", 10**9)  # a GPU's texts keep their padding
    waits, losses = [], []
    step, to_device = trainer.Trainer._train_step, trainer.to_device

    def copies(batch, device):
        moved = {key: tensor.clone() for key, tensor in to_device(batch, device).items()}
        for key, tensor in moved.items():
            current.add(tensor)
            if not tensor.is_floating_point():
                keep_twin(tensor, batch[key])
        return moved

    def counted(self, batches, clock, guard):
        nonlocal current
        batch = next(batches)
        current = PlayedDevice()
        for tensor in (*self.task.modules.parameters(), *self.task.modules.buffers()):
            current.add(tensor)
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "to_device", copies)
            for read in READS:
                watched(patch, read, current)
            with current:
                values, source = step(self, iter([batch]), clock, guard)
        waits.append(current.waits)
        losses.append(values.losses)
        return values, source

    def plain(self, batches, clock, guard):
        values, source = step(self, batches, clock, guard)
        losses.append(values.losses)
        return values, source

    current = PlayedDevice()
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_train_step", counted if played else plain)
        train_run(small_run(recipe, pairs, max_steps=3, **train), folder)
    return waits, losses


@pytest.mark.parametrize(
    ("recipe", "extra"),
    [
        # the texts that read an image share its keys, and only the device knows which do
        ("mplug.pretrain", Counter(_local_scalar_dense=1)),
        ("vlmo.pretrain", Counter()),
        ("flava.joint", Counter()),
    ],
)
def test_a_step_waits_once(recipe, extra, pairs, tmp_path, monkeypatch):
    waits, losses = steps_of(recipe, pairs, tmp_path / "played", monkeypatch, played=True)
    for step in waits:
        rest = step - extra
        assert rest == Counter(tolist=1), step
    plain = steps_of(recipe, pairs, tmp_path / "plain", monkeypatch, played=False)[1]
    assert losses == plain  # bitwise


def test_the_counter_sees_what_it_counts(monkeypatch):
    device = PlayedDevice()
    tensor, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    with monkeypatch.context() as patch:
        for read in READS:
            watched(patch, read, device)
        with device:
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
