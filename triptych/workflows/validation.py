"""What validation in training measures, and where it keeps the best model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from triptych.checkpoint.nested import join_tensors, split_tensors
from triptych.core.errors import ConfigError, DataError, nearest
from triptych.core.outputs import MetricValue
from triptych.core.rng import seed_step
from triptych.data.collate import AnyCollator
from triptych.data.manifest import FoundRecords
from triptych.data.records import JoinedRecords, Record
from triptych.data.skips import TRAIN_FLAG, SkipLog
from triptych.data.stream import build_loader
from triptych.data.transforms.pipeline import ImageTransform
from triptych.distributed.collectives import all_reduce_mean
from triptych.distributed.env import is_main, rank, world_size
from triptych.evaluation.bootstrap import mean_value
from triptych.evaluation.evaluator import evaluation_mode
from triptych.recipes.config import RunConfig
from triptych.serving.loading import LoadedModel, read_settings
from triptych.tasks.registry import (
    evaluated_configs,
    find_evaluation,
    needed_capabilities,
    task_spec,
)
from triptych.tasks.spec import Evaluation
from triptych.text import Tokenizer
from triptych.train.precision import Precision, autocast
from triptych.train.step import to_device
from triptych.train.task import MixedTask, Task
from triptych.train.validation import Measure, Validated, Validator
from triptych.workflows.evaluate import evaluate_loaded
from triptych.workflows.predictors import evaluation_records
from triptych.workflows.sources import ReadSource, TrainingData
from triptych.workflows.trained_model import folder_settings, save_model, trained_parts

BEST_FOLDER = "best"
"""In the run folder: the model folder of the best model so far."""

LOSSES = "losses"
"""As `validation.task`: the objectives' own losses."""

TOTAL = "loss/total"

TRIAL_RECORDS = 8
"""Records that are scored before the first step, to find out early what is wrong."""

CollatorOf = Callable[[str | None], AnyCollator[Any]]


def build_validator(
    config: RunConfig,
    data: TrainingData,
    task: Task,
    model: Any,
    tokenizer: Tokenizer,
    collator_of: CollatorOf,
    run_folder: Path,
) -> Validator | None:
    """Return what validates a run; None where it has no data for that.

    Args:
        config: Of the run, complete.
        data: With what is held out.
        task: What is trained.
        model: Its model.
        tokenizer: The model's.
        collator_of: Builds the collator of a kind of batch; of None for a task of one kind.
        run_folder: Receives the best model.

    Raises:
        ConfigError: `validation.task` names what the model cannot be scored on.
        DataError: The data lacks what is to be measured.
    """
    if not data.held_out:
        return None
    records = _joined(data.held_out)
    name = _choose(config, model, records, data.held_out[0].config.path)
    measure: Measure
    if name == LOSSES:
        measure = LossMeasure(config, data.held_out, task, collator_of)
        decides: str | None = TOTAL
    else:
        found = FoundRecords(records, ())
        measure = _EvaluationMeasure(config, found, data.held_out, task, model, tokenizer, name)
        decides = _evaluation(config, name).decides
    every = config.validation.steps_between(
        max_steps=config.train.max_steps,
        num_records=len(data.records),
        global_batch_size=config.train.global_batch_size,
    )
    number = min(len(records), config.validation.limit or len(records))
    paths = ", ".join(dict.fromkeys(source.config.path for source in data.held_out))

    def keep(last: Validated, note: str) -> None:
        parts = trained_parts(task, run_folder, last.step, last, ended=False, note=note)
        weights = gather(model.state_dict() if parts.weights is None else parts.weights)
        head = None if parts.head is None else gather(parts.head)
        if is_main():
            parts = replace(parts, weights=weights, head=head)
            folder = run_folder / BEST_FOLDER
            save_model(folder, config, model, tokenizer, len(data.records), parts)

    return Validator(
        measure,
        keep,
        config.validation,
        every=every,
        max_steps=config.train.max_steps,
        decides=decides,
        told=f"{name} on {number:,} records of {paths}",
    )


def _joined(sources: Sequence[ReadSource]) -> Sequence[Record]:
    if len(sources) == 1:
        return sources[0].records
    return JoinedRecords([source.records for source in sources])


def _choose(config: RunConfig, model: Any, records: Sequence[Record], where: str) -> str:
    """Return the evaluation that validates a run, or `losses`."""
    spec = task_spec(config.task)
    names = list(spec.evaluation_names())
    taught = [r.teaches for r in spec.recipes if r.name == config.recipe and r.teaches is not None]
    if taught:
        names = [name for name in names if name in taught[0]] or names
    asked = config.validation.task
    if asked == LOSSES:
        return LOSSES
    if asked is not None:
        if asked not in names:
            known = ", ".join([*names, LOSSES])
            raise ConfigError(
                f"validation.task = {asked!r}{nearest(asked, [*names, LOSSES])}: "
                f"{config.recipe} is scored on {known}"
            )
        evaluation_records(records, _evaluation(config, asked), where)
        return asked
    problem: DataError | None = None
    for name in names:
        reads_likelihoods = _evaluation(config, name).method != "predict"  # a loss says as much
        if reads_likelihoods or not needed_capabilities(name) <= model.capabilities:
            continue
        try:
            evaluation_records(records, _evaluation(config, name), where)
            return name
        except DataError as error:
            problem = problem or error
    if problem is not None and not spec.pretrains:
        raise problem
    return LOSSES


def _evaluation(config: RunConfig, name: str) -> Evaluation[Any]:
    """Return the task's own evaluation of a name, or else that of another task."""
    own = [known for known in task_spec(config.task).evaluations if known.name == name]
    return own[0] if own else find_evaluation(name)


@dataclass(slots=True)
class _EvaluationMeasure:
    """Scores the model as `triptych eval` scores its folder; each process the whole data."""

    config: RunConfig
    found: FoundRecords
    sources: Sequence[ReadSource]
    task: Task
    model: Any
    tokenizer: Tokenizer
    name: str

    def __call__(self, device: torch.device, precision: str, *, trial: bool) -> list[MetricValue]:
        config, limit = self.config, self.config.validation.limit
        loaded = LoadedModel(
            self.model,
            self.tokenizer,
            config.image,
            read_settings(folder_settings(config, self.model)),
            {},
            Path(self.sources[0].config.path),
            device,
            cast(Precision, precision),
            "as in training",
        )
        is_own = type(config.task) in evaluated_configs(self.name)
        return evaluate_loaded(
            loaded,
            self.name,
            self.sources[0].config,
            found=self.found,
            bound=self.task if is_own else None,
            limit=min(TRIAL_RECORDS, limit or TRIAL_RECORDS) if trial else limit,
            rerank_top_k=config.validation.rerank_top_k,
            local_batch_size=batch_size_of(config),
            max_bad_share=1.0 if trial else config.data.max_bad_share,
        )


class LossMeasure:
    """Means of the objectives' losses over held-out data, each process its part of every batch.

    Without dropout and augmentation; masks, and pairs that do not match, are the same each time.

    Args:
        config: Of the run.
        sources: The held-out data.
        task: What is trained; in evaluation mode its losses change no state.
        collator_of: Builds the collator of a kind of batch; of None for a task of one kind.
    """

    def __init__(
        self,
        config: RunConfig,
        sources: Sequence[ReadSource],
        task: Task,
        collator_of: CollatorOf,
    ) -> None:
        self.config, self.task, self.collator_of = config, task, collator_of
        self.parts: list[tuple[str | None, Sequence[Record]]]
        if isinstance(task, MixedTask):
            self.parts = [(source.kind(), source.records) for source in sources]
        else:
            self.parts = [(None, _joined(sources))]
        given = {schedule.name: schedule.weight for schedule in config.weights}
        weights = given or dict.fromkeys(sorted(task.objective_names), 1.0)
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}

    def __call__(self, device: torch.device, precision: str, *, trial: bool) -> list[MetricValue]:
        """Return each loss as "loss/NAME", and their weighted sum."""
        found: dict[str, list[float]] = {TOTAL: []}
        number = 0
        with evaluation_mode(self.task.modules), torch.no_grad():
            for kind, records in self.parts:
                weights = self._weights_of(kind)
                batches, size = self._batches(kind, records, trial)
                for batch in batches if weights else ():
                    seed_step(self.config.train.seed, 0, rank(), number)
                    number += 1
                    with autocast(device, precision):
                        losses = self.task.losses(
                            to_device(batch, device), active=frozenset(weights)
                        )
                    total = 0.0
                    for name, weight in weights.items():
                        value = float(all_reduce_mean(losses[name].float()))
                        found.setdefault(f"loss/{name}", []).append(value)
                        total += weight * value
                    found[TOTAL].append(total)
        if not found[TOTAL]:
            raise DataError(
                "no batch of the held-out data has an objective that is trained: name other data"
            )
        what = f"Mean over batches of {size} held-out samples, as drawn in training, no dropout."
        return [
            replace(mean_value(name, values, what), higher_is_better=False)
            for name, values in found.items()
        ]

    def _weights_of(self, kind: str | None) -> dict[str, float]:
        if kind is None or not isinstance(self.task, MixedTask):
            return self.weights
        allowed = self.task.batch_kinds[kind].objectives
        return {name: weight for name, weight in self.weights.items() if name in allowed}

    def _batches(self, kind: str | None, records: Sequence[Record], trial: bool) -> tuple[Any, int]:
        """Return the whole batches of a part's records, and the samples of one."""
        limit = self.config.validation.limit
        records = records if limit is None else records[:limit]
        world = world_size()
        own = min(batch_size_of(self.config), len(records) // world)
        if own == 0:
            raise DataError(
                f"{len(records)} held-out records are too few for {world} processes: name more"
            )
        loader = build_loader(
            records,
            self.collator_of(kind),
            ImageTransform(self.config.image, train=False),
            seed=self.config.data.seed,
            local_batch_size=own,
            train=True,  # records that cannot be used are replaced, so that no process lacks one
            skip_log=SkipLog(None, len(records), self.config.data.max_bad_share, flag=TRAIN_FLAG),
            rank=rank(),
            world_size=world,
        )
        return islice(iter(loader), 1 if trial else len(records) // (own * world)), own * world


def batch_size_of(config: RunConfig) -> int:
    """Return how many samples a process scores at a time."""
    size = config.validation.batch_size
    return size or config.train.split_batch(world_size()).micro_batch_size


@torch.no_grad()
def gather(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with whole tensors, tied ones as one; all processes call it together."""
    skeleton, tensors = split_tensors(dict(state))
    whole = {
        key: tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
        for key, tensor in tensors.items()
    }
    found = join_tensors(skeleton, lambda key, _: whole[key])
    assert isinstance(found, dict)
    return found
