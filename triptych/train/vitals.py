"""The numbers of `metrics.jsonl` that tell whether a run is healthy, beside losses and speed.

None of them changes what a step computes: they draw no random numbers and keep no graph. What
belongs to a step is measured within the step, so that a resumed run logs the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from triptych.train.chance import Chance, LabelCounts
from triptych.train.task import Task, WatchedTask

SAMPLED, ENTRIES = 12, 1024
"""Matrices of each side of the model whose change is measured, and entries of each."""

PIXELS = 64
"""Values of each image that are compared with those of the other images of a batch."""

_WANTS_SPREAD = "/wants_spread"
"""In the state, beside the names of objectives."""

_IMAGE_SIDE = re.compile(r"(^|\.)patch_embedding\.|\.experts\.image\.")
_NO_MATRIX = re.compile(r"codebook|(?<!patch_)embedding|position|token")


class Vitals:
    """Collects the numbers of a run.

    Args:
        task: What is trained.
        chances: Where the chance values of its losses come from.
        is_vision: Whether the parameter of a name belongs to the image encoder.
        num_columns: Pairs of a pass, all processes together.
        active: Whether this process writes the log; others collect nothing of their own.
    """

    def __init__(
        self,
        task: Task,
        chances: Mapping[str, Chance],
        *,
        is_vision: Callable[[str], bool],
        num_columns: int,
        active: bool,
    ) -> None:
        self._task, self._chances, self._active = task, chances, active
        self._is_vision, self._num_columns = is_vision, num_columns
        self._counts = {name: LabelCounts() for name, c in chances.items() if c.labels is not None}
        self._parts: dict[str, list[Tensor]] | None = None
        self._before: dict[str, Tensor] = {}
        self._of_step: dict[str, float] = {}
        self._wants_spread, self._has_spread = True, False

    def see(self, batch: Mapping[str, Tensor], objectives: frozenset[str], *, due: bool) -> None:
        """Look at a batch before it goes to the device.

        Args:
            batch: As the loader yields it.
            objectives: Those that can be computed on it; the labels of these are counted.
            due: Whether the step is logged; others are not looked at, to save time.
        """
        if not (self._active and due):
            return
        for name in self._counts.keys() & objectives:
            found = self._chances[name].read(batch)
            if found is not None:
                self._counts[name].add(*found)
        self._of_step |= inputs(batch)

    def of_batch(self) -> dict[str, Tensor]:
        """Return the task's own scalars of the last micro-batch, on the training device.

        Embeddings are looked at in the first step of a line that has some, since that takes time.
        """
        if not isinstance(self._task, WatchedTask):
            return {}
        found = self._task.batch_vitals(spread=self._wants_spread)
        self._has_spread |= any(name.startswith("embedding/") for name in found)
        return found

    def before_update(self, *, due: bool) -> None:
        """Note the weights, if the step is logged."""
        self._wants_spread = due or (self._wants_spread and not self._has_spread)
        self._has_spread = False
        if self._active and due:
            self._parts = self._parts or self._choose()
            self._before = {side: _entries(part) for side, part in self._parts.items()}

    def numbers(self) -> dict[str, float]:
        """Return what a line of the log gets, after its step."""
        found, self._of_step = self._of_step, {}
        for side, before in self._before.items():
            assert self._parts is not None
            change = (_entries(self._parts[side]) - before).norm() / before.norm().clamp(min=1e-12)
            found[f"update/{side}"] = float(change)
        self._before = {}
        if isinstance(self._task, WatchedTask):
            found |= self._task.state_vitals()
        columns = self._num_columns + int(found.get("queue/filled", 0))
        for name, chance in self._chances.items():
            value = chance.value(columns, self._counts.get(name))
            if value is not None:
                found[f"chance/{name}"] = value
        return found

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as JSON values."""
        counts = {name: counts.state() for name, counts in self._counts.items()}
        return {**counts, _WANTS_SPREAD: self._wants_spread}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned; a run of an earlier version has nothing."""
        self._wants_spread = state.get(_WANTS_SPREAD, True)
        for name in self._counts.keys() & state.keys():
            self._counts[name].load_state(state[name])

    def _choose(self) -> dict[str, list[Tensor]]:
        """Return some matrices of the image side, and of the rest, that are trained.

        Of an image side that is not trained at all the frozen ones are taken, to show it.
        """
        sides: dict[str, list[tuple[str, nn.Parameter]]] = {"image": [], "rest": []}
        for name, parameter in self._task.modules.named_parameters():
            is_matrix = parameter.ndim > 1 and not _NO_MATRIX.search(name)
            if is_matrix and not name.startswith(("teacher.", "image_tokenizer.")):
                is_image = self._is_vision(name) or bool(_IMAGE_SIDE.search(name))
                sides["image" if is_image else "rest"].append((name, parameter))
        found: dict[str, list[Tensor]] = {}
        for side, pairs in sides.items():
            trained = [p for _, p in pairs if p.requires_grad]
            chosen: Sequence[Tensor] = trained or ([p for _, p in pairs] if side == "image" else [])
            if chosen:
                found[side] = list(chosen[:: -(-len(chosen) // SAMPLED)])
        return found


def inputs(batch: Mapping[str, Tensor]) -> dict[str, float]:
    """Return how much the samples of a batch differ from each other.

    Returns:
        `input/image_spread`: the mean standard deviation of a pixel over the images, 0 if all are
        equal. `input/distinct_texts`: how many different texts there are. Each only where the batch
        has two such inputs or more.
    """
    found: dict[str, float] = {}
    image = batch.get("image")
    if image is not None and len(image) > 1:
        flat = image.flatten(1)
        some = flat[:, :: max(1, flat.shape[1] // PIXELS)].float()
        found["input/image_spread"] = float(some.std(dim=0, correction=0).mean())
    texts = batch.get("token_ids")
    if texts is not None and len(texts) > 1:
        found["input/distinct_texts"] = float(len({row.tobytes() for row in texts.cpu().numpy()}))
    return found


@torch.no_grad()
def _entries(parameters: Sequence[Tensor]) -> Tensor:
    """Return a copy of the first entries of some parameters, this process's part of them."""
    parts = [p.to_local() if isinstance(p, DTensor) else p for p in parameters]
    return torch.cat([part.flatten()[:ENTRIES].float() for part in parts])
