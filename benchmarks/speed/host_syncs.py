"""How often a pre-training step waits for its device, by recipe; prints JSON.

On a CPU nothing waits, so the device is played: what `to_device` returns are copies whose twins
stay on the host, these copies, weights and everything computed from them count as the device's,
and every operation that would bring a number or a size of theirs to the host is counted.

    python -m benchmarks.speed.host_syncs
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from tests.workflows.small_runs import small_run
from triptych.core.host import keep_twin
from triptych.data.source import DataSourceConfig
from triptych.nn.packing import TokenGrid
from triptych.train import trainer
from triptych.workflows.run import train_run

RECIPES = ("mplug.pretrain", "vlmo.pretrain", "flava.joint")
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
READS = ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__")


class PlayedDevice(TorchDispatchMode):
    """Counts what would wait, by operation, for tensors that count as a device's."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.own: Any = WeakTensorKeyDictionary()

    def holds(self, value: object) -> bool:
        """Return whether a tensor among these is the device's."""
        leaves = [x for x in tree_iter(value) if isinstance(x, Tensor)]
        return any(x.requires_grad or x in self.own or x.is_nested for x in leaves)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Count, compute, and take note of the results."""
        name = function.overloadpacket.__name__
        on_device = self.holds((args, kwargs))
        masks = name in INDEXED and any(
            isinstance(x, Tensor) and x.dtype is torch.bool and x in self.own
            for x in tree_iter(args[1])
        )
        if on_device and (name in WAITS or masks):
            self.waits[name] += 1
        result = function(*args, **(kwargs or {}))
        if on_device:
            tree_map_only(Tensor, self.add, result)
        return result

    def add(self, tensor: Tensor) -> Tensor:
        """Let a tensor count as the device's."""
        self.own[tensor] = True
        return tensor

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what leads to the host, methods without an operation of their own included."""
        with ExitStack() as stack:
            for read in READS:
                stack.enter_context(patch.object(Tensor, read, self._counted(read)))
            stack.enter_context(self)
            yield

    def _counted(self, read: str) -> Any:
        original = getattr(Tensor, read)

        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            before = self.waits.total()
            found = original(tensor, *args, **kwargs)
            if self.holds(tensor) and self.waits.total() == before:
                self.waits[read] += 1
            return found

        return counted


def write_pairs(folder: Path, number: int = 24) -> DataSourceConfig:
    """Write images of noise with captions of three lengths."""
    rng = np.random.default_rng(0)
    lines = []
    for n in range(number):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f"{n}.png")
        caption = f"a red circle left of blue square number {n} " + "and green " * (n % 3)
        lines.append(json.dumps({"image": f"{n}.png", "caption": caption}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return DataSourceConfig(path=str(folder / "pairs.jsonl"))


def steps_of(
    recipe: str, pairs: DataSourceConfig, folder: Path, *, played: bool
) -> tuple[list[Counter[str]], list[dict[str, float]]]:
    """Train three steps of a recipe at scale "smoke".

    Args:
        recipe: Its name.
        pairs: What to train on.
        folder: Of the run.
        played: Whether there is a device to wait for.

    Returns:
        What each step waits for, and its losses.
    """
    waits: list[Counter[str]] = []
    losses: list[dict[str, float]] = []
    step, to_device = trainer.Trainer._train_step, trainer.to_device
    device = PlayedDevice()

    def copies(batch: Mapping[str, Tensor], where: torch.device) -> dict[str, Tensor]:
        moved = {key: tensor.clone() for key, tensor in to_device(batch, where).items()}
        for key, tensor in moved.items():
            device.add(tensor)
            if not tensor.is_floating_point():
                keep_twin(tensor, batch[key])
        return moved

    def watched(self: trainer.Trainer, batches: Any, clock: Any, guard: Any) -> Any:
        nonlocal device
        batch = next(batches)
        device = PlayedDevice()
        for tensor in (*self.task.modules.parameters(), *self.task.modules.buffers()):
            device.add(tensor)
        if played:
            with patch.object(trainer, "to_device", copies), device.counting():
                values, source = step(self, iter([batch]), clock, guard)
            waits.append(device.waits)
        else:
            values, source = step(self, iter([batch]), clock, guard)
        losses.append(values.losses)
        return values, source

    # a GPU's texts keep their padding, and its host does not know how many read an image
    unknown = patch.object(TokenGrid, "counts_at_once", staticmethod(lambda _: False))
    with unknown, patch.object(trainer.Trainer, "_train_step", watched):
        train_run(small_run(recipe, pairs, max_steps=3), folder)
    return waits, losses


def main() -> None:
    waits: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        pairs = write_pairs(Path(folder))
        for recipe in RECIPES:
            steps, _ = steps_of(recipe, pairs, Path(folder) / recipe, played=True)
            waits[recipe] = max(step.total() for step in steps)
    print(json.dumps({"host_syncs_per_step": max(waits.values()), "by_recipe": waits}))


if __name__ == "__main__":
    main()
