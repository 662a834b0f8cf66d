"""Which parts of a model a run trains: low-rank matrices instead of weights, and frozen parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from triptych.checkpoint.adapter import ADAPTER_CONFIG, merge, read_adapter
from triptych.checkpoint.model_folder import load_model_folder, save_model_folder
from triptych.checkpoint.released import find_folder
from triptych.core.errors import CheckpointError, ConfigError
from triptych.core.patterns import is_factor, select_names
from triptych.nn.lora import LoRAConfig, adapt
from triptych.recipes.config import RunConfig
from triptych.train.task import Task

MODEL = "model."
"""How the names of the model's parameters begin among those of a task."""


def adapt_model(config: RunConfig, model: Any) -> None:
    """Give a model the low-rank matrices that a run asks for, if it does, before its task is built.

    Raises:
        ConfigError: The run starts from random weights, or a pattern matches no layer.
    """
    if config.lora.rank is None:
        return
    if config.model.init_from is None:
        raise ConfigError(
            f"lora.rank = {config.lora.rank}: the weights of {config.model.name} would stay as "
            "random as they are; name a trained model with --init-from"
        )
    adapt(model, config.lora)


def freeze_parts(config: RunConfig, task: Task) -> list[str]:
    """Freeze what a run does not train, and return what to tell of it.

    Args:
        config: Of the run.
        task: With the model that `adapt_model` was given; frozen in place.

    Raises:
        ConfigError: A pattern matches no parameter, or none that is trained; or nothing is left to
            train.
    """
    if config.lora.rank is None and not config.freeze:
        return []
    named = dict(task.modules.named_parameters())
    if config.lora.rank is not None:
        kept = [name for name in named if name.startswith(MODEL) and not is_factor(name)]
        also = select_names(config.lora.also, kept, field="lora.also", what="parameter")
        adapted = [name.rpartition(".")[0] for name in named if is_factor(name)]
        for name in also:
            owner = name.rpartition(".")[0]
            if any(layer == owner or layer.startswith(f"{owner}.") for layer in adapted):
                raise ConfigError(
                    f"lora.also: the module of {name.removeprefix(MODEL)} has layers that are "
                    "adapted: name other parameters, or fewer layers in lora.targets"
                )
        for name in set(kept) - set(also):
            named[name].requires_grad_(False)
    for pattern in config.freeze:
        chosen = select_names((pattern,), named, field="freeze", what="parameter")
        if not any(named[name].requires_grad for name in chosen):
            raise ConfigError(
                f"freeze: {pattern!r} matches nothing that is trained (such as {chosen[0]}, which "
                "is frozen already): omit it"
            )
        for name in chosen:
            named[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise ConfigError(f"freeze = {list(config.freeze)}: nothing is left to train")
    return [_said(config.lora, task.modules)]


def _said(lora: LoRAConfig, modules: nn.ModuleDict) -> str:
    parameters = [(p.numel(), p.requires_grad) for p in modules.parameters()]
    trained = sum(number for number, is_trained in parameters if is_trained) / 1e6
    everything = sum(number for number, _ in parameters) / 1e6
    layers = sum(is_factor(name) for name, _ in modules[MODEL[:-1]].named_parameters()) // 2
    low = "" if lora.rank is None else f"{layers} linear layers are adapted with rank {lora.rank}; "
    return f"{low}{trained:.2f} M of {everything:.2f} M parameters are trained"


def merge_adapter(model: str | Path, out: Path, apart: Path | None = None) -> int:
    """Write a model folder with an adapter in its weights.

    Args:
        model: A model folder, or the hub id of one.
        out: The new model folder; not `model`.
        apart: A folder with peft's two files; None merges the adapter that lies in `model`.

    Returns:
        How many tensors it changed.

    Raises:
        CheckpointError: There is no adapter, or two; it belongs to another model; or a file is
            damaged or cannot be written.
        ConfigError: `out` is `model`.
    """
    folder = find_folder(model)
    if out.resolve() == folder.resolve():
        raise ConfigError(f"{out} is the folder that is read: name another one with --out")
    found = load_model_folder(folder, merged=False)
    if apart is not None and found.adapter is not None:
        raise CheckpointError(
            f"{model} has an adapter already, and {apart} is another: merge the first one alone, "
            "and the other one into the result"
        )
    adapter = found.adapter if apart is None else read_adapter(apart)
    if adapter is None:
        raise CheckpointError(
            f"{model} holds no adapter ({ADAPTER_CONFIG} is missing): name the folder of one with "
            "--adapter"
        )
    note = f"The change of low rank in `{apart or model}` is merged into the weights of `{model}`."
    save_model_folder(
        out,
        config=found.config,
        state_dict=merge(found.state_dict, adapter, str(apart or model)),
        tokenizer_json=found.tokenizer_json,
        preprocess=found.preprocess,
        card=f"{found.card.rstrip()}\n\n## Adapter\n\n{note}\n",
        head=found.head or None,
    )
    return len(adapter.factors) + len(adapter.whole)
