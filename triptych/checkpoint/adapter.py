"""LoRA adapters in peft's files, both ways: `adapter_config.json` and `adapter_model.safetensors`.

A model folder may hold both beside `model.safetensors`: whoever reads the folder gets the weights
with the change in them. A folder with these two files alone belongs to the model it was trained on.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.checkpoint.tensor_file import read_tensors, write_tensors
from triptych.core.errors import CheckpointError, nearest
from triptych.core.files import write_json
from triptych.core.patterns import FACTORS, is_factor
from triptych.core.reading import read_json_object, reading

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_BASE = "base"
"""In the metadata of the weights: the hash of what they change."""
_ORDINARY_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Of `init_lora_weights`: those that leave the weights of the model as they are."""
_UNKNOWN: Mapping[str, object] = {
    "use_dora": False,
    "use_qalora": False,
    "use_bdlora": None,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "trainable_token_indices": None,
    "layer_replication": None,
    "target_parameters": None,
}
"""Settings of peft that change what an adapter means, and the value that is understood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A change of low rank of some weights of a model.

    Attributes:
        factors: A (r, D_in) and B (D_out, r) by the name of the layer.
        whole: Other parameters that take the place of the model's, by their names.
        scaling: Factor on B A, by the name of the layer.
        rank: The rank that layers have unless they differ.
        alpha: The scaling times the rank, likewise.
        dropout: In training.
        base: Hash of the weights that it changes; None if the file does not say.
        based_on: Where these weights lie; for people.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    scaling: Mapping[str, float]
    rank: int
    alpha: float
    dropout: float = 0.0
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    base: str | None = None
    based_on: str | None = None


def split_adapter(
    state: Mapping[str, Tensor],
    whole: Sequence[str] = (),
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    based_on: str | None = None,
) -> tuple[dict[str, Tensor], Adapter]:
    """Split the state of an adapted model into that of the model before, and the change.

    Args:
        state: With `NAME.lora_A` and `NAME.lora_B` beside `NAME.weight`.
        whole: Names of parameters that were trained in full. They are kept with the others of their
            modules, and the state before has them too.
        rank: Of all layers.
        alpha: Likewise.
        dropout: Likewise.
        based_on: The model folder that the weights came from.
    """
    base = {name: value for name, value in state.items() if not is_factor(name)}
    names = list(dict.fromkeys(name.rpartition(".")[0] for name in state if is_factor(name)))
    factors = {n: (state[f"{n}.{FACTORS[0]}"], state[f"{n}.{FACTORS[1]}"]) for n in names}
    scaling = dict.fromkeys(names, alpha / rank)
    owners = {name.rpartition(".")[0] for name in whole}  # peft keeps whole modules
    return base, Adapter(
        factors=factors,
        scaling=scaling,
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        whole={n: base[n] for n in base if any(n.startswith(f"{o}.") for o in owners)},
        based_on=based_on,
    )


@torch.no_grad()
def merge(state: Mapping[str, Tensor], adapter: Adapter, where: str) -> dict[str, Tensor]:
    """Return the weights of a model with the change in them, on the CPU.

    Args:
        state: Of the model that the adapter was trained on.
        adapter: The change.
        where: What messages call the adapter.

    Raises:
        CheckpointError: It is the adapter of another model, or changes weights that are tied.
    """
    check_fits(state, adapter, where)
    merged = dict(state)
    for name, (down, up) in adapter.factors.items():
        weight = state[f"{name}.weight"]
        change = (up.cpu().float() @ down.cpu().float()) * adapter.scaling[name]
        merged[f"{name}.weight"] = (weight.cpu().float() + change).to(weight.dtype)
    return merged | dict(adapter.whole)


def check_fits(state: Mapping[str, Tensor], adapter: Adapter, where: str) -> None:
    """Raise a CheckpointError unless an adapter belongs to a model with these weights."""
    owners = Counter(id(value) for value in state.values())
    changes = {name: tuple(value.shape) for name, value in adapter.whole.items()}
    for name, (down, up) in adapter.factors.items():
        changes[f"{name}.weight"] = (up.shape[0], down.shape[1])
    for name, shape in changes.items():
        weight = state.get(name)
        if weight is None:
            raise CheckpointError(
                f"{where} is the adapter of another model: it changes {name}, which this model "
                f"lacks{nearest(name, state)}"
            )
        if tuple(weight.shape) != shape:
            raise CheckpointError(
                f"{where} is the adapter of another model: its change of {name} is {shape}, and "
                f"the weight {tuple(weight.shape)}"
            )
        if owners[id(weight)] > 1:
            raise CheckpointError(
                f"{where} changes {name}, which is tied to another weight: a change of one would "
                "be a change of both"
            )
    if adapter.base is not None and adapter.base != _hash_weights(state, list(adapter.factors)):
        raise CheckpointError(
            f"{where} was trained on a model of the same shapes with other weights: name the model "
            "folder that its run started from"
        )


def write_adapter(folder: Path, adapter: Adapter, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Write both files, as peft's `save_pretrained` does.

    Args:
        folder: Where; it exists.
        adapter: What to write.
        state: The weights that it changes, whose hash tells other models from this one.

    Returns:
        The SHA-256 of the weights by their file's name.
    """
    tensors = {}
    for name, (down, up) in adapter.factors.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = down
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = up
    tensors |= {f"{_PREFIX}{name}": value for name, value in adapter.whole.items()}
    metadata = {"format": "pt", _BASE: _hash_weights(state, list(adapter.factors))}
    written = write_tensors(folder / ADAPTER_WEIGHTS, tensors, metadata)
    ranks = {name: down.shape[0] for name, (down, _) in adapter.factors.items()}
    alphas = {name: adapter.scaling[name] * rank for name, rank in ranks.items()}
    plain = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": adapter.based_on,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": _whole(adapter.alpha),
        "lora_dropout": adapter.dropout,
        "target_modules": sorted(adapter.factors),
        "rank_pattern": {n: r for n, r in ranks.items() if r != adapter.rank},
        "alpha_pattern": {n: _whole(a) for n, a in alphas.items() if not _equal(a, adapter.alpha)},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": sorted({n.rpartition(".")[0] for n in adapter.whole}) or None,
        "use_rslora": False,
        "use_dora": False,
    }
    write_json(folder / ADAPTER_CONFIG, plain)
    return {ADAPTER_WEIGHTS: str(written["sha256"])}


def read_adapter(folder: Path) -> Adapter:
    """Read both files, ours or peft's.

    Raises:
        CheckpointError: A file is missing or damaged, the two do not fit together, or the adapter
            is of a kind that is not known here.
    """
    path = folder / ADAPTER_CONFIG
    for file in (path, folder / ADAPTER_WEIGHTS):
        if not file.is_file():
            raise CheckpointError(
                f"{folder} holds no adapter: {file.name} is missing; peft writes {ADAPTER_CONFIG} "
                f"and {ADAPTER_WEIGHTS}"
            )
    plain = read_json_object(path, error=CheckpointError)
    _check_known(plain, path)
    tensors, metadata = read_tensors(folder / ADAPTER_WEIGHTS)
    whole = {}
    if plain.get("modules_to_save"):
        parts = {name for name in tensors if _FACTOR.fullmatch(name) is None}
        whole = {name.removeprefix(_PREFIX): tensors.pop(name) for name in sorted(parts)}
    factors = _pair(tensors, folder / ADAPTER_WEIGHTS)
    with reading(path, CheckpointError):
        rank, alpha = int(plain["r"]), float(plain.get("lora_alpha", plain["r"]))
        own_alphas = {str(k): float(v) for k, v in (plain.get("alpha_pattern") or {}).items()}
        dropout = float(plain.get("lora_dropout") or 0.0)
        ranks = {name: down.shape[0] for name, (down, _) in factors.items()}
        if not plain.get("rank_pattern") and set(ranks.values()) != {rank}:
            raise CheckpointError(
                f"{path} says rank {rank}, and the weights beside it have "
                f"{', '.join(map(str, sorted(set(ranks.values()))))}: the files belong to "
                "different adapters"
            )
    scaling = {
        name: _alpha_of(name, own_alphas, alpha, path)
        / (math.sqrt(own) if plain.get("use_rslora") else own)
        for name, own in ranks.items()
    }
    if not all(map(math.isfinite, scaling.values())):
        raise CheckpointError(f"{path}: lora_alpha must be a finite number")
    return Adapter(
        factors=factors,
        scaling=scaling,
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        whole=whole,
        base=metadata.get(_BASE),
        based_on=plain.get("base_model_name_or_path"),
    )


def _check_known(plain: Mapping[str, Any], path: Path) -> None:
    """Raise where a file of peft means more than a change of low rank."""
    kind = plain.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path}: peft_type = {kind!r}; only LORA can be read")
    for name, understood in _UNKNOWN.items():
        value = plain.get(name, understood)
        if value not in (understood, None, [], {}):
            raise CheckpointError(
                f"{path}: {name} = {value!r} cannot be read; merge the adapter with peft, or train "
                f"it with {name} = {understood!r}"
            )
    start = plain.get("init_lora_weights", True)
    if start not in _ORDINARY_STARTS:
        raise CheckpointError(
            f"{path}: init_lora_weights = {start!r} changes the model's own weights, which the "
            "files do not hold; merge the adapter with peft, or convert it (peft: "
            "path_initial_model_for_weight_conversion)"
        )


def _pair(tensors: Mapping[str, Tensor], path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B by the name of their layer."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _FACTOR.fullmatch(name)
        if match is None:
            raise CheckpointError(
                f"{path}: {name} is no part of a change of low rank; only adapters of linear "
                "layers can be read"
            )
        found.setdefault(match[1], {})[match[2]] = tensor
    for name, pair in found.items():
        if pair.keys() != {"A", "B"}:
            raise CheckpointError(f"{path}: one of the two matrices of {name} is missing")
        shapes = [tuple(pair[side].shape) for side in "AB"]
        if any(len(shape) != 2 for shape in shapes) or shapes[0][0] != shapes[1][1]:
            raise CheckpointError(
                f"{path}: the matrices of {name} are {shapes[0]} and {shapes[1]}, and must be "
                "(rank, inputs) and (outputs, rank); only adapters of linear layers can be read"
            )
    if not found:
        raise CheckpointError(f"{path} holds no matrices")
    return {name: (pair["A"], pair["B"]) for name, pair in found.items()}


def _alpha_of(name: str, patterns: Mapping[str, float], usual: float, path: Path) -> float:
    """Return what `alpha_pattern` says of a layer: its keys are ends of names.

    Peft takes them for regular expressions. Those that are more than a name are refused, so that no
    file can hold one that takes for ever.
    """
    for key, value in patterns.items():
        if re.fullmatch(r"\^?[\w.]+", key) is None:
            raise CheckpointError(
                f"{path}: alpha_pattern has {key!r}; only names of layers can be read"
            )
        end = key.removeprefix("^")
        if name == end or (name.endswith(f".{end}") and end == key):
            return value
    return usual


def _hash_weights(state: Mapping[str, Tensor], names: Sequence[str]) -> str:
    """Return a hash of the weights of these layers, whatever precision they are kept in."""
    digest = hashlib.sha256()
    for name in sorted(names):
        weight = state[f"{name}.weight"].detach().cpu().float().contiguous()
        digest.update(name.encode() + b"\0")
        digest.update(weight.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _whole(value: float) -> float | int:
    """Return a number as peft writes it: whole where it is."""
    return int(value) if value == int(value) else value


def _equal(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-9)
