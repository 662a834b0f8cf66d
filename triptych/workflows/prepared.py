"""A run before its first step, and the trainers that can be made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.core.console import Console
from triptych.data.collate import AnyCollator
from triptych.distributed.env import world_size
from triptych.models.families import family_of, model_sizes
from triptych.recipes.config import RunConfig
from triptych.tasks.registry import build_collator, task_spec
from triptych.tasks.spec import PatchView
from triptych.text import Tokenizer
from triptych.train.history import RunFacts
from triptych.train.task import DataState, Task
from triptych.train.trainer import Trainer
from triptych.train.validation import Validator
from triptych.workflows.sources import TrainingData, training_loader


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run before its first step.

    Attributes:
        config: Of the run, with what data and model fill in.
        data: What it trains on.
        model: What it trains.
        tokenizer: Of the model.
        task: Of the model, too.
    """

    config: RunConfig
    data: TrainingData
    model: Any
    tokenizer: Tokenizer
    task: Task

    def trainer(
        self,
        config: RunConfig,
        run_folder: Path,
        task: Task | None = None,
        *,
        evaluate: Callable[[int], Mapping[str, float]] | None = None,
        validator: Validator | None = None,
        data: DataState | None = None,
        console: Console | None = None,
    ) -> Trainer:
        """Return a trainer.

        Args:
            config: The run's, or one that differs in how steps are computed.
            run_folder: Receives what the trainer writes.
            task: Another task on the same model.
            evaluate: As the trainer takes it, like those that follow.
            validator: Scores the model on held-out data.
            data: Tells whether the data of a run that goes on has changed.
            console: Where to print progress.
        """
        task = task or self.task
        spec, sources = task_spec(config.task), self.data.batch_sources(task)
        return Trainer(
            task,
            lambda start: training_loader(config, self.data, sources, self.collator_of, start),
            config=config.train,
            optim=config.optim,
            weights=config.weights,
            run_folder=run_folder,
            sources=sources,
            is_vision=family_of(self.model.config).is_vision_parameter,
            work=None
            if spec.work is None
            else spec.work(config.task, self.model.config, config.captions.max_text_tokens),
            facts=run_facts(config, world_size()),
            evaluate=evaluate,
            validator=validator,
            data=data,
            console=console,
        )

    def collator_of(self, kind: str | None) -> AnyCollator[Any]:
        """Return what makes batches of a kind; of None for a task of one kind."""
        config, view = self.config, None
        if task_spec(config.task).tokenizer != "none":
            patch_size = model_sizes(self.model.config).patch_size
            view = PatchView(config.image, patch_size, config.crops)
        return build_collator(
            config.task,
            self.tokenizer,
            config.captions,
            config.lengths,
            train=True,
            kind=kind,
            images=view,
        )


def run_facts(config: RunConfig, num_processes: int) -> RunFacts:
    """Return what the run doctor knows of a run beside its log."""
    pairs = config.train.split_batch(num_processes).micro_batch_size * num_processes
    chances = task_spec(config.task).chances(config.task)
    frozen = bool(config.freeze) or config.lora.rank is not None
    return RunFacts(config.train.max_steps, pairs, chances, has_frozen=frozen)
