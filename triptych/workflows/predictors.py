"""What predicts the samples of an evaluation: its records, their batches, and the task asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from triptych.core.config import to_dict
from triptych.core.errors import CapabilityError, ConfigError, DataError
from triptych.core.outputs import Predictions
from triptych.data.check import CLIPS_ARE_NOT_READ, clip_problem
from triptych.data.collate.base import image_key
from triptych.data.records import Record
from triptych.data.skips import SkipLog
from triptych.data.stream import BatchLoader
from triptych.evaluation.evaluator import PredictingTask
from triptych.serving.loading import LoadedModel
from triptych.tasks.finetuning.text_generator import GeneratingTask, GenerationSettings
from triptych.tasks.finetuning.vqa import VQAConfig
from triptych.tasks.registry import evaluation_of, missing_fields, task_spec
from triptych.tasks.spec import CollatorInputs, Evaluation
from triptych.train.task import Task


def evaluation_records(
    records: Sequence[Record], scoring: Evaluation[Any], where: str
) -> list[Record]:
    """Return the records that a task can be scored on.

    Raises:
        DataError: There is none.
    """
    usable = [record for record in records if has_truth(record, scoring)]
    if scoring.one_per_image:
        usable = first_of_each_image(usable)
    if not usable:
        raise DataError(
            f"{where} holds nothing to evaluate {scoring.name} on: {len(records)} records, none "
            f"with {' and '.join([*_images_in_words(scoring), scoring.field])}"
            f"{_clips_note(records, scoring)}"
        )
    return usable


def predictable_records(
    records: Sequence[Record], scoring: Evaluation[Any], where: str
) -> list[Record]:
    """Return the records that a task can predict, with the truth or without it.

    Raises:
        DataError: There is none.
    """
    usable = [
        record
        for record in records
        if has_truth(record, scoring)
        or (_has_images(record, scoring) and not missing_fields(scoring.reads, record))
    ]
    if scoring.one_per_image:
        usable = first_of_each_image(usable)
    if not usable:
        read = [need.replace("|", " or ") for need in scoring.reads]
        raise DataError(
            f"{where} holds nothing to predict {scoring.name} of: {len(records)} records, none "
            f"with {' and '.join([*_images_in_words(scoring), *read])}"
            f"{_clips_note(records, scoring)}"
        )
    return usable


def first_of_each_image(records: Sequence[Record]) -> list[Record]:
    """Return the first record of each image, in their order."""
    return list({image_key(r): r for r in reversed(records)}.values())[::-1]


def has_truth(record: Record, scoring: Evaluation[Any]) -> bool:
    """Return whether a record can be scored: it has its images and the truth."""
    truth = getattr(record, scoring.field)
    return _has_images(record, scoring) and truth not in (None, (), "")


def _has_images(record: Record, scoring: Evaluation[Any]) -> bool:
    if scoring.num_images == 1:
        return record.image is not None or (scoring.reads_clips and record.video is not None)
    return scoring.num_images == 0 or len(record.images) == 2


def _images_in_words(scoring: Evaluation[Any]) -> list[str]:
    one = "an image or a clip" if scoring.reads_clips else "an image"
    return [[], [one], ["two images"]][scoring.num_images]


def _clips_note(records: Sequence[Record], scoring: Evaluation[Any]) -> str:
    """Return why clips are of no use, where there is nothing else; empty otherwise."""
    if scoring.reads_clips or not records or not all(map(clip_problem, records)):
        return ""
    return f" (each {CLIPS_ARE_NOT_READ})"


def evaluation_loader(
    loaded: LoadedModel,
    task: str,
    records: Sequence[Record],
    local_batch_size: int,
    skip_log: SkipLog | None = None,
) -> BatchLoader:
    """Return each record once, prepared as the model wants it."""
    config = loaded.task_config(task)
    build = evaluation_of(config, task).collator or task_spec(config).collator
    inputs = CollatorInputs(
        tokenizer=loaded.tokenizer,
        captions=loaded.captions(),
        lengths=loaded.lengths(),
        train=False,
    )
    return loaded.loader(records, build(config, inputs), local_batch_size, skip_log)


def as_asked(
    loaded: LoadedModel, task: str, num_frames: int | None, answers: tuple[str, ...]
) -> LoadedModel:
    """Return a model that reads so many frames of a clip and chooses from these answers.

    Args:
        loaded: The model.
        task: What it is asked for.
        num_frames: None leaves the model folder's.
        answers: Ranked by their likelihood; empty leaves the model folder's way to answer.

    Raises:
        ConfigError: There are answers, and the task or the model chooses from none.
    """
    if num_frames is not None:
        loaded = replace(loaded, image=replace(loaded.image, num_frames=num_frames))
    if not answers:
        return loaded
    config = loaded.task_config(task)
    if not isinstance(config, VQAConfig):
        raise ConfigError(
            f"answers: a list of {len(answers)} is given, and `{task}` of {loaded.folder} is not "
            "answering in words: omit it, or take a model that was fine-tuned with mplug.vqa"
        )
    chosen = to_dict(replace(config, answer_list=answers), tagged=True)
    return replace(loaded, settings=replace(loaded.settings, task=chosen))


def check_generation(scoring: Evaluation[Any], generation: GenerationSettings) -> None:
    """Raise a ConfigError where texts are asked for that an evaluation never generates."""
    if generation.given() and scoring.procedure != "predict":
        raise _no_texts(generation, f"`{scoring.name}` generates no text")


def build_predictor(loaded: LoadedModel, task: str, generation: GenerationSettings) -> Task:
    """Bind a model to an evaluated task, on its device.

    Raises:
        CapabilityError: No task of that evaluation takes such a model.
        ConfigError: Texts are to be generated in some way, and the task generates none.
    """
    models = task_spec(loaded.task_config(task)).models
    if not models.accept(loaded.model):
        raise CapabilityError(
            f"{loaded.folder}: {type(loaded.model).__name__} cannot be asked for `{task}`, which "
            f"needs {models.words()}"
        )
    bound = loaded.build_task(task)
    bound.modules.to(loaded.device)
    if generation.given():
        if not isinstance(bound, GeneratingTask):
            trained = " and ".join(loaded.settings.trained_for)
            words = f"a model that was trained for {trained} generates no text for `{task}`"
            raise _no_texts(generation, words)
        scoring = evaluation_of(loaded.task_config(task), task)
        if scoring.method != "predict":
            raise _no_texts(generation, f"`{task}` reads texts and generates none")
        bound.generate_with(generation)
    return bound


def _no_texts(generation: GenerationSettings, why: str) -> ConfigError:
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in generation.given())
    return ConfigError(f"{flags}: {why}: omit it")


@dataclass(slots=True)
class Asked:
    """A task that is asked by one of its methods, and hands what it says to a listener too."""

    task: PredictingTask
    method: str = "predict"
    keep: Callable[[Predictions], None] | None = None

    @property
    def modules(self) -> torch.nn.ModuleDict:
        """The task's."""
        return self.task.modules

    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Ask the task."""
        predictions: Predictions = getattr(self.task, self.method)(batch)
        if self.keep is not None:
            self.keep(predictions)
        return predictions
