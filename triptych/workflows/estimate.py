"""What a run would need on many GPUs, on paper: parameters on the meta device, then formulas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from triptych.checkpoint.released import open_model_folder
from triptych.core.config import from_dict
from triptych.core.errors import ConfigError
from triptych.models.families import FAMILIES, build_model, model_config, to_model_folder
from triptych.recipes.config import RunConfig
from triptych.tasks.registry import TASKS, build_task, check_model, task_spec
from triptych.text import Tokenizer
from triptych.train.estimate import (
    USABLE_SHARE,
    MemoryEstimate,
    NetworkEstimate,
    ScaleSetting,
    StateCount,
    TimeEstimate,
    count_state,
    estimate_memory,
    estimate_network,
    estimate_time,
)
from triptych.train.hardware import Hardware
from triptych.train.optim import is_block_matrix
from triptych.train.work import Recompute, StepWork
from triptych.workflows.adapting import adapt_model, freeze_parts
from triptych.workflows.new_model import choose_fusion

FEWEST_SAMPLES = 16
"""Samples that a GPU should have at a time: of fewer, its matrix products are too small."""

RECOMPUTES: tuple[Recompute, ...] = ("none", "selective", "full")


@dataclass(frozen=True, slots=True)
class RunCount:
    """A run, counted.

    Attributes:
        state: Its parameters and buffers.
        work: What a step computes.
    """

    state: StateCount
    work: StepWork


def count_run(config: RunConfig) -> RunCount:
    """Count the parameters and the work of a run; nothing is allocated and no data is read.

    Raises:
        ConfigError: The task does not train such a model, or does not say what a step computes; or
            a pattern of what is adapted or frozen matches nothing.
    """
    work = task_spec(config.task).work
    if work is None:
        counted = [r.name for spec in TASKS.values() if spec.work is not None for r in spec.recipes]
        raise ConfigError(
            f"{config.recipe} does not say what one of its steps computes, so that nothing can be "
            f"estimated; these do: {', '.join(counted)}"
        )
    with torch.device("meta"):
        model = model_on_paper(config)
        adapt_model(config, model)
        task = build_task(config.task, model, Tokenizer.without_words())
    freeze_parts(config, task)
    muon = config.optim.muon_learning_rate is not None
    state = count_state(task.modules, is_block_matrix) if muon else count_state(task.modules)
    return RunCount(state, work(config.task, model.config, config.captions.max_text_tokens))


def model_on_paper(config: RunConfig) -> Any:
    """Return the model that a run would train, without memory for its weights.

    Raises:
        ConfigError: The task does not train such a model.
    """
    with torch.device("meta"):
        model = build_model(_model_sizes(config))
    check_model(config.task, model, config.recipe, f"model.name = {config.model.name}")
    return model


def run_setting(config: RunConfig, gpus: int) -> ScaleSetting:
    """Return how a config spreads its run over so many GPUs, under FSDP for the time being.

    Raises:
        ConfigError: They cannot share its batch.
    """
    train = config.train
    split = train.split_batch(gpus)
    return ScaleSetting(
        world_size=gpus,
        global_batch_size=train.global_batch_size,
        micro_batch_size=split.micro_batch_size,
        parallel="fsdp" if gpus > 1 else "none",
        shard_size=train.shard_size,
        precision="bf16" if train.precision == "auto" else train.precision,
        recompute=train.recompute,
    )


def _model_sizes(config: RunConfig) -> object:
    """Return the config of the model that a run would train."""
    source = config.model
    if source.init_from is None:
        reads_text = task_spec(config.task).tokenizer != "none"
        sizes = model_config(
            source.name,
            image_size=source.image_size,
            vocab_size=config.tokenizer.vocab_size if reads_text else None,
        )
        return choose_fusion(sizes, source)
    stored = dict(open_model_folder(source.init_from, to_model_folder).config["model"])
    family = FAMILIES.get(stored.pop("kind"))
    return from_dict(family.config_class, stored, "model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One row of a table.

    Attributes:
        setting: How the run is spread.
        samples: What a GPU keeps the activations of at a time: a micro-batch, or a chunk.
        memory: On one GPU.
        network: Bytes that one GPU sends in a step.
        time: Of a step.
        fits: Whether nine tenths of the GPU's memory suffice.
    """

    setting: ScaleSetting
    samples: int
    memory: MemoryEstimate
    network: NetworkEstimate
    time: TimeEstimate
    fits: bool


def estimate(
    count: RunCount, setting: ScaleSetting, hardware: Hardware, *, utilisation: float = 0.3
) -> Estimate:
    """Return what a run needs in one setting."""
    work = count.work
    memory = estimate_memory(count.state, setting, work)
    return Estimate(
        setting=setting,
        samples=min(setting.micro, work.chunk_size or setting.micro),
        memory=memory,
        network=estimate_network(count.state, setting, work, hardware),
        time=estimate_time(count.state, setting, work, hardware, utilisation=utilisation),
        fits=memory.total <= USABLE_SHARE * hardware.memory_bytes,
    )


def fit(
    count: RunCount, setting: ScaleSetting, hardware: Hardware, *, utilisation: float = 0.3
) -> Estimate:
    """Return the first setting that fits, the one that computes least being tried first.

    All samples of a GPU at once, then halves of them down to `FEWEST_SAMPLES`: first without
    recomputation (or as the setting has it), then selective, then full; at last full recomputation
    of ever fewer samples. A task with a gradient cache halves its chunks, another one its
    micro-batches. If nothing fits, the last is returned.
    """
    for recompute, samples in _tries(setting, count):
        tried, chosen = replace(setting, recompute=recompute), count
        if count.work.chunk_size is not None:
            chosen = replace(count, work=replace(count.work, chunk_size=samples))
        else:
            tried = replace(tried, micro_batch_size=samples)
        found = estimate(chosen, tried, hardware, utilisation=utilisation)
        if found.fits:
            return found
    return found


def _tries(setting: ScaleSetting, count: RunCount) -> Iterator[tuple[Recompute, int]]:
    most = setting.micro
    if count.work.chunk_size is not None:
        most = min(most, count.work.chunk_size)
    sizes = [most]
    while sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    for recompute in RECOMPUTES[RECOMPUTES.index(setting.recompute) :]:
        for size in sizes:
            if size >= min(FEWEST_SAMPLES, most) or recompute == "full":
                yield recompute, size
