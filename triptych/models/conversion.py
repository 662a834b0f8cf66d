"""Foreign checkpoints: apply a key table, and say what became of every tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

KeyTable = dict[str, tuple[str, ...]]
"""Our name to the foreign names whose tensors, joined along dim 0, it holds."""

Resize = Callable[[Tensor], Tensor]
"""Bring a foreign tensor to the size that the model wants."""


@dataclass(slots=True)
class ImportReport:
    """What became of every tensor of a foreign checkpoint and of the model.

    Attributes:
        loaded: Our names that took their values from the file, resized ones included.
        resized: Those of them that were brought to another size.
        dropped: Foreign names that have no place in the model, each with the reason.
        missing: Our names that the file does not have; the model keeps its own values.
        reinitialised: Our names whose tensor in the file has another shape, with both shapes; the
            model keeps its own values.
        unexpected: Foreign names that nothing explains.
        temperature: The file's ITC temperature, which belongs to the task; None when absent.
    """

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    reinitialised: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    temperature: float | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the model has all its values from the file and the file holds no riddle."""
        return not (self.missing or self.reinitialised or self.unexpected)

    def summary(self) -> str:
        """Return what a person needs to judge the import, a line a group."""
        reasons: dict[str, int] = {}
        for reason in self.dropped.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        lines = [f"loaded {len(self.loaded)} tensors, {len(self.resized)} of them resized"]
        lines += [f"left out {count}: {reason}" for reason, count in reasons.items()]
        lines += [f"not in the file, kept fresh: {name}" for name in self.missing]
        lines += [
            f"another shape, kept fresh: {name} ({why})" for name, why in self.reinitialised.items()
        ]
        lines += [f"not understood: {name}" for name in self.unexpected]
        return "\n".join(lines)


def gather_tensors(
    foreign: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    table: KeyTable,
    resizes: Mapping[str, Resize],
    report: ImportReport,
) -> dict[str, Tensor]:
    """Collect the model's tensors from a foreign state dict.

    Args:
        foreign: The foreign state dict, names normalised.
        wanted: The model's own state dict.
        table: Which foreign tensors make which of ours.
        resizes: How to bring a tensor of another shape to size, by our name.
        report: Filled with loaded, resized, missing and reinitialised names.

    Returns:
        Tensors by our name, in the model's shapes and dtypes.
    """
    found: dict[str, Tensor] = {}
    for ours, mine in wanted.items():
        names = table.get(ours, ())
        if not names or any(name not in foreign for name in names):
            report.missing.append(ours)
            continue
        parts = [foreign[name] for name in names]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        if tensor.shape != mine.shape and ours in resizes:
            tensor = resizes[ours](tensor)
            report.resized.append(ours)
        if tensor.shape != mine.shape:
            report.reinitialised[ours] = f"{tuple(tensor.shape)} for {tuple(mine.shape)}"
            continue
        found[ours] = tensor.to(mine.dtype)
        report.loaded.append(ours)
    return found


def split_tensors(state: Mapping[str, Tensor], table: KeyTable) -> dict[str, Tensor]:
    """Return our tensors under their foreign names: the reverse of `gather_tensors`."""
    foreign: dict[str, Tensor] = {}
    for ours, names in table.items():
        for name, part in zip(names, state[ours].chunk(len(names)), strict=True):
            foreign[name] = part.clone() if len(names) > 1 else part
    return foreign


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors into a model; one on the meta device takes them over instead of copying."""
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    model.load_state_dict(dict(tensors), strict=False, assign=on_meta)


def linear_keys(ours: str, *foreign: str) -> KeyTable:
    """Map the weight and bias of a layer to those of one layer, or of several packed in order."""
    return {
        f"{ours}.{kind}": tuple(f"{name}.{kind}" for name in foreign) for kind in ("weight", "bias")
    }
