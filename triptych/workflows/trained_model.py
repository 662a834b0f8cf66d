"""What a run leaves: the parts that a task trained, and a model folder of them with its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from triptych.checkpoint.adapter import Adapter, merge, split_adapter
from triptych.checkpoint.model_folder import build_model_card, save_model_folder
from triptych.core.config import to_dict
from triptych.core.machine import current_commit
from triptych.core.outputs import MetricValue
from triptych.core.patterns import is_factor
from triptych.models.families import family_of
from triptych.recipes.config import RunConfig
from triptych.tasks.registry import task_spec
from triptych.tasks.spec import OwnWeightsTask, SelfEvaluatedTask
from triptych.text import Tokenizer
from triptych.train.metrics_log import METRICS_FILE, read_metrics
from triptych.train.task import Task
from triptych.train.validation import Validated


@dataclass(frozen=True, slots=True)
class TrainedParts:
    """What a task leaves in the model folder beside, or in place of, the model's own weights.

    Attributes:
        head: The weights of its classifier.
        contrast: Its learned temperature, or log(1/τ) of each contrastive loss, which an export
            writes.
        weights: What is saved in place of the model's own weights, such as a teacher's.
        metrics: What was measured of these weights.
        losses: The last losses that training logged, by name.
        note: What the model card says of how these weights were chosen.
    """

    head: Mapping[str, Tensor] | None = None
    contrast: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, Tensor] | None = None
    metrics: Sequence[MetricValue] = ()
    losses: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


def trained_parts(
    task: Task,
    run_folder: Path,
    step: int,
    validated: Validated | None = None,
    *,
    ended: bool,
    note: str = "",
) -> TrainedParts:
    """Return what a task leaves beside the model.

    Args:
        task: With the weights to save.
        run_folder: With the log of its losses.
        step: The step that the weights are of.
        validated: The last validation, which counts if it is of this step.
        ended: Whether the run is over, when the task also measures itself.
        note: What the model card says of how these weights were chosen.
    """
    metrics = list(task.final_metrics()) if ended and isinstance(task, SelfEvaluatedTask) else []
    if validated is not None and validated.step == step:
        metrics = [*validated.values, *metrics]
    else:
        note = ""
    return TrainedParts(
        head=task.modules["head"].state_dict() if "head" in task.modules else None,
        contrast=contrast_scalars(task.modules),
        weights=task.model_state() if isinstance(task, OwnWeightsTask) else None,
        metrics=metrics,
        losses=last_losses(run_folder / METRICS_FILE, step),
        note=note,
    )


def last_losses(metrics: Path, until: int) -> dict[str, float]:
    """Return the losses of the last line, up to a step, of a run's log that has any, by name."""
    found: dict[str, float] = {}
    for line in read_metrics(metrics):
        if line["step"] > until:
            break
        names = [key for key in line if key.startswith("loss/")]
        found = {name.removeprefix("loss/"): line[name] for name in names} or found
    return found


def contrast_scalars(modules: nn.ModuleDict) -> dict[str, float]:
    """Return the scalars that a task's contrastive losses learn, by name."""
    if "state" not in modules:
        return {}
    named = modules["state"].named_parameters()
    return {name: float(value.detach()) for name, value in named if value.ndim == 0}


def save_model(
    folder: Path,
    config: RunConfig,
    model: Any,
    tokenizer: Tokenizer,
    num_records: int,
    parts: TrainedParts | None = None,
) -> None:
    """Write the model folder of a run, with its card and what the task trained beside the model."""
    parts = parts or TrainedParts()
    state = dict(model.state_dict() if parts.weights is None else parts.weights)
    state, adapter = _adapted(config, model, state)
    reads_text = task_spec(config.task).tokenizer != "none"
    contrast = {"contrast": dict(parts.contrast)} if parts.contrast else {}
    save_model_folder(
        folder,
        config=folder_settings(config, model) | contrast,
        state_dict=state,
        tokenizer_json=tokenizer.to_json() if reads_text else None,
        preprocess=to_dict(config.image),
        card=_card(config, model, num_records, parts),
        head=parts.head,
        adapter=adapter,
    )


def _adapted(
    config: RunConfig, model: Any, state: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Adapter | None]:
    """Return the weights of a run's model folder, and the change that is kept beside them."""
    lora = config.lora
    if lora.rank is None:
        return state, None
    trained = (name for name, value in model.named_parameters() if value.requires_grad)
    base, adapter = split_adapter(
        state,
        [name for name in trained if not is_factor(name)],
        rank=lora.rank,
        alpha=lora.scaling * lora.rank,
        dropout=lora.dropout,
        based_on=config.model.init_from,
    )
    if lora.save == "beside":
        return base, adapter
    return merge(base, adapter, "the run"), None


def folder_settings(config: RunConfig, model: Any) -> dict[str, Any]:
    """Return what the `config.json` of a run's model folder holds."""
    spec = task_spec(config.task)
    stored = config.task if spec.stored is None else spec.stored(config.task)
    text = {
        "max_text_tokens": config.captions.max_text_tokens,
        "max_words": config.captions.max_words,
        **to_dict(config.lengths),
    }
    return {
        "model": to_dict(model.config, tagged=True),
        "trained_for": [spec.trained_for],
        "task": to_dict(stored, tagged=True),
        "text": text if spec.tokenizer != "none" else None,
    }


def _card(config: RunConfig, model: Any, num_records: int, parts: TrainedParts) -> str:
    """Return the model card of a run."""
    spec = task_spec(config.task)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    parameters = sum(size for name, size in sizes.items() if not is_factor(name)) / 1e6
    summary = (
        f"{family_of(model.config).title} with {parameters:.1f} M parameters, trained for "
        f"{spec.trained_for} for {config.train.max_steps} steps of "
        f"{config.train.global_batch_size} samples."
    )
    if config.lora.rank is not None:
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
        kept = "in the weights" if config.lora.save == "merged" else "beside the weights"
        summary += (
            f" A change of rank {config.lora.rank} was trained ({trained:.2f} M parameters) and is "
            f"{kept}."
        )
    for more in (parts.note, "" if spec.summary is None else spec.summary(model)):
        summary += f" {more}" if more else ""
    apart = {
        f"{source.path} (validation)": f"reader {source.reader}, split {source.split or 'all'}"
        for source in config.data.val
    }
    if config.data.val_share is not None:
        apart["validation"] = f"a share of {config.data.val_share:g} of these images, held out"
    return build_model_card(
        title=f"{config.model.name}: {config.recipe}",
        summary=summary,
        data={
            source.path: f"reader {source.reader}, split {source.split or 'all'}"
            for source in config.data.train
        }
        | {"in all": f"{num_records} records"}
        | apart,
        recipe=yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True),
        metrics=parts.metrics,
        commit=current_commit(),
        usage=spec.usage,
        losses=parts.losses,
        evaluation=next(iter(spec.evaluation_names()), None),
    )
