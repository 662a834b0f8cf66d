"""From a RunConfig to a trained model folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml

from triptych.checkpoint.released import open_model_folder
from triptych.core.config import from_dict, load_yaml, save_yaml, to_dict
from triptych.core.console import Console
from triptych.core.errors import CheckpointError, ConfigError, DataError
from triptych.core.files import folder_for_one, remove_partials, write_json, writing
from triptych.core.machine import num_cores
from triptych.core.rng import seed_everything
from triptych.data.batches import RecordTexts
from triptych.data.images import pixels_allowed
from triptych.data.records import Record
from triptych.distributed.collectives import from_main
from triptych.distributed.env import is_main, joined, launched, leads, run_processes, world_size
from triptych.models.families import (
    build_model,
    model_config,
    model_sizes,
    to_model_folder,
)
from triptych.recipes.config import RunConfig
from triptych.serving.loading import load_model
from triptych.tasks.registry import (
    build_task,
    check_model,
    complete_task,
    task_spec,
)
from triptych.tasks.spec import (
    InitialisedTask,
    SelfEvaluatedTask,
    TrainingSetup,
)
from triptych.text import Tokenizer
from triptych.train.task import Task
from triptych.train.trainer import CHECKPOINTS, TrainResult
from triptych.train.validation import Validator
from triptych.workflows.adapting import adapt_model, freeze_parts
from triptych.workflows.guard import measure_guard, prepare_guard
from triptych.workflows.new_model import (
    check_start,
    choose_fusion,
    init_parts,
    keep_normalisation,
    load_published_tokenizer,
    skip_impossible_objectives,
)
from triptych.workflows.prepared import PreparedRun
from triptych.workflows.same_data import SameData
from triptych.workflows.sources import read_training_data
from triptych.workflows.trained_model import TrainedParts, save_model, trained_parts
from triptych.workflows.validation import BEST_FOLDER, build_validator

CONFIG_FILE = "config.yaml"
TOKENIZER_FILE = "tokenizer.json"
START_FILE = "start.json"
"""What the model was built with, for an export while the run goes on."""

MODEL_FOLDER = "model"
PLANS = "stages"
"""Folder with the config of each stage of a stagewise run, before the first one starts."""

WORDLESS = (
    "no text in the data: the model gets a placeholder vocabulary of special tokens alone, and can "
    "start no task on texts; if it should, name a tokenizer with --tokenizer.path"
)


def train_run(
    config: RunConfig,
    run_folder: Path,
    *,
    resume: bool | Literal["auto"] = False,
    accept_changed_data: bool = False,
    console: Console | None = None,
) -> TrainResult:
    """Train, and leave a run folder with a model folder in it.

    Args:
        config: What to do.
        run_folder: Receives `config.yaml`, `metrics.jsonl`, `skipped.jsonl`, `checkpoints/`,
            TensorBoard events and `model/`.
        resume: Go on from the last checkpoint. "auto" goes on with the run that the folder holds,
            as its own config says, and starts one if there is none.
        accept_changed_data: Go on although the data has changed since the last checkpoint.
        console: Where to report; standard output if absent.

    Raises:
        CheckpointError: The data has changed, no checkpoint is whole, or the disk refuses.
        ConfigError: The run folder is in use, or the config asks for what cannot be.
        DataError: The data cannot be read, or too much of it is bad.
    """
    with folder_for_one(run_folder) if leads() else nullcontext():
        if resume == "auto" and not launched():
            config, resume = _own_config(config, run_folder)
        if not resume and leads():
            check_unused(run_folder)
            _clear_failed_run(run_folder, console or Console())
        if config.train.num_processes > 1 and not launched():
            share = share_threads(config, config.train.num_processes)
            number = config.train.num_processes
            arguments = (share, run_folder, bool(resume), accept_changed_data)
            return run_processes(_train, number, *arguments)
        with joined():
            if resume == "auto":  # all processes must take the same side of this
                config, resume = from_main(_own_config(config, run_folder) if is_main() else None)
            return _train(config, run_folder, bool(resume), accept_changed_data, console)


def _own_config(config: RunConfig, run_folder: Path) -> tuple[RunConfig, bool]:
    """Return the config of the run that a folder holds, if any, and whether it holds one."""
    if not (run_folder / CONFIG_FILE).is_file():
        return config, False
    return load_yaml(RunConfig, run_folder / CONFIG_FILE), True


def check_unused(run_folder: Path) -> None:
    """Raise where a folder holds a run that has saved something.

    Raises:
        ConfigError: There is something to resume.
    """
    saved = [run_folder / name for name in (MODEL_FOLDER, PLANS)]
    saved += (run_folder / CHECKPOINTS).glob("step_*")
    if any(path.exists() for path in saved):
        raise ConfigError(
            f"{run_folder} holds an earlier run: resume it with "
            f"`triptych train {run_folder} --resume`, or choose another folder with --out"
        )


def _clear_failed_run(run_folder: Path, console: Console) -> None:
    """Remove what a run left that saved nothing."""
    if (run_folder / CONFIG_FILE).exists():
        said = f"{run_folder} held a run that saved nothing: it is replaced"
        console.print(said, highlight=False, markup=False, soft_wrap=True)
        for stale in (CONFIG_FILE, "metrics.jsonl"):
            (run_folder / stale).unlink(missing_ok=True)
        for listed in run_folder.glob("skipped*.jsonl"):
            listed.unlink()
        for stale in ("tensorboard", BEST_FOLDER):
            shutil.rmtree(run_folder / stale, ignore_errors=True)


def share_threads(config: RunConfig, num_processes: int) -> RunConfig:
    """Return a config that gives each of several processes its part of the machine's cores."""
    if config.train.num_threads is not None:
        return config
    threads = max(1, num_cores() // num_processes)
    return replace(config, train=replace(config.train, num_threads=threads))


def with_processes(config: RunConfig) -> RunConfig:
    """Return the config that a run folder keeps: with the number of processes that train.

    A launcher such as torchrun starts them without the config's knowledge. Kept, the number lets
    `--resume` start as many on this machine; those of several machines need the launcher again.
    """
    on_one_machine = os.environ.get("LOCAL_WORLD_SIZE") in (None, os.environ.get("WORLD_SIZE"))
    number = world_size() if on_one_machine else config.train.num_processes
    return replace(config, train=replace(config.train, num_processes=number))


def _train(
    config: RunConfig,
    run_folder: Path,
    resume: bool,
    accept_changed_data: bool,
    console: Console | None = None,
) -> TrainResult:
    """Train in this process, alone or as one of several.

    Raises:
        CheckpointError: The disk is full.
    """
    what = f"the files of run {run_folder}"
    with (
        writing(what, run_folder, kind=CheckpointError, then="resume", only_full=True),
        pixels_allowed(config.data.max_image_pixels),
    ):
        if is_main():
            remove_partials(run_folder)  # of a model that was being written when a run was killed
        return _train_here(config, run_folder, resume, accept_changed_data, console)


def _train_here(
    config: RunConfig,
    run_folder: Path,
    resume: bool,
    accept_changed_data: bool,
    console: Console | None,
) -> TrainResult:
    """Train, once errors of the disk are looked after."""
    run = prepare_run(config, run_folder, console, resumed=run_folder if resume else None)
    config, data, task, tokenizer = run.config, run.data, run.task, run.tokenizer
    guard = prepare_guard(config, data)
    validator = build_validator(
        config, data, task, run.model, tokenizer, run.collator_of, run_folder
    )
    trainer = run.trainer(
        config,
        run_folder,
        evaluate=task.evaluate if isinstance(task, SelfEvaluatedTask) else None,
        validator=validator,
        data=SameData(config.data, data.whole, accept=accept_changed_data),
        console=console,
    )
    if is_main():
        tokenizer.save(run_folder)
        start = {"model": to_dict(run.model.config, tagged=True), "num_records": len(data.records)}
        write_json(run_folder / START_FILE, start)
        save_yaml(with_processes(config), run_folder / CONFIG_FILE)
    result = trainer.fit(resume=resume)
    if data.skip_log.num_bad:
        (console or Console()).print(data.skip_log.report(), markup=False, highlight=False)
    if is_main():
        number, parts = len(data.records), _ended_parts(task, run_folder, result.step, validator)
        save_model(run_folder / MODEL_FOLDER, config, run.model, tokenizer, number, parts)
    measure_guard(guard, config, run_folder, run_folder / MODEL_FOLDER, console)
    return result


def prepare_run(
    config: RunConfig, run_folder: Path, console: Console | None, *, resumed: Path | None = None
) -> PreparedRun:
    """Read the data, and build tokenizer, model and task.

    Args:
        config: What to train.
        run_folder: Receives `skipped.jsonl`.
        console: Where to report; standard output if absent.
        resumed: A run folder that holds the tokenizer of its first start.
    """
    check_start(config)
    data = read_training_data(config, run_folder)
    records = data.records
    config = replace(config, task=complete_task(config.task, records))
    spec = task_spec(config.task)
    tokenizer = prepare_tokenizer(config, records, console, resumed)
    seed_everything(config.train.seed)
    model = prepare_model(config, tokenizer, console)
    adapt_model(config, model)
    config = keep_normalisation(config, console)
    config = replace(config, image=spec.image(config.image, model))
    config = skip_impossible_objectives(config, model, console)
    task = build_task(config.task, model, tokenizer, records)
    _check_evaluation(config, task, resumed is not None)
    if spec.check_data is not None:
        spec.check_data(config.task, model, records)
    frozen = freeze_parts(config, task)
    notes = data.notes() + frozen + ([] if spec.notes is None else spec.notes(config.task, model))
    for note in [*notes, *_untrained_start(config)] if is_main() else ():
        (console or Console()).print(note, markup=False, highlight=False)
    if isinstance(task, InitialisedTask):
        setup = TrainingSetup(
            records=records, image=config.image, seed=config.data.seed, run_folder=run_folder
        )
        task.initialise(setup)
    return PreparedRun(config, data, model, tokenizer, task)


def _ended_parts(
    task: Task, run_folder: Path, step: int, validator: Validator | None
) -> TrainedParts:
    """Return what a task leaves beside the model at the end of a run."""
    last = None if validator is None else validator.last
    note = "" if validator is None else validator.note()
    return trained_parts(task, run_folder, step, last, ended=True, note=note)


def _untrained_start(config: RunConfig) -> list[str]:
    """Return a warning where a task that fine-tunes starts from random weights."""
    source = config.model
    starts = (source.init_from, source.init_vision_from, source.init_text_from)
    if task_spec(config.task).pretrains or any(start is not None for start in starts):
        return []
    return [
        f"{config.recipe} fine-tunes, but no pre-trained model is named: {source.name} starts from "
        "random weights; name a model folder with --init-from unless this is what you want"
    ]


def _check_evaluation(config: RunConfig, task: Task, resume: bool) -> None:
    """Raise where an evaluation during training is asked of a task that has none."""
    every = config.train.evaluate_every_steps
    if every is not None and not resume and not isinstance(task, SelfEvaluatedTask):
        raise ConfigError(
            f"train.evaluate_every_steps = {every}: {config.recipe} measures nothing while it "
            "trains, only `dvae` does; omit it, and score the finished model with `triptych eval`"
        )


def resume_run(
    run_folder: Path, *, accept_changed_data: bool = False, console: Console | None = None
) -> TrainResult:
    """Go on with an interrupted run from its own `config.yaml` and last checkpoint.

    Raises:
        CheckpointError: The folder holds no run, or its data has changed and that is not accepted.
    """
    if not (run_folder / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{run_folder} holds no run to resume: {CONFIG_FILE} is missing; "
            "name the folder that was given as --out, or, where nothing was trained yet, give the "
            "same command again without --resume"
        )
    return train_run(
        load_yaml(RunConfig, run_folder / CONFIG_FILE),
        run_folder,
        resume=True,
        accept_changed_data=accept_changed_data,
        console=console,
    )


def is_finished(run_folder: Path) -> bool:
    """Return whether a run has left its model."""
    return (run_folder / MODEL_FOLDER / "config.json").is_file()


def finish_run(
    config: RunConfig,
    run_folder: Path,
    *,
    accept_changed_data: bool = False,
    console: Console | None = None,
) -> TrainResult:
    """Train, or go on with the run in this folder where one has begun, as its own config says."""
    if (run_folder / CONFIG_FILE).is_file():
        return resume_run(run_folder, accept_changed_data=accept_changed_data, console=console)
    return train_run(config, run_folder, console=console)


MAY_CHANGE = (
    "data.max_bad_share",
    "data.num_workers",
    "train.device",
    "train.micro_batch_size",
    "train.num_processes",
    "train.num_threads",
    "train.parallel",
    "train.shard_size",
)
"""Fields of a run's config that may differ when it goes on: how it is computed, not what."""


def change_run(run_folder: Path, changes: Mapping[str, str]) -> None:
    """Change fields of a run, or of every stage of a stagewise one, before it goes on.

    Args:
        run_folder: Holds the run.
        changes: Values, as YAML writes them, by dotted names of `MAY_CHANGE`.

    Raises:
        ConfigError: A value does not fit its field.
    """
    files = [run_folder / CONFIG_FILE]
    if (run_folder / PLANS).is_dir():
        files += [*(run_folder / PLANS).glob("*.yaml"), *run_folder.glob(f"*/{CONFIG_FILE}")]
    changed = {}
    for file in filter(Path.is_file, files):
        plain = to_dict(load_yaml(RunConfig, file))
        for name, text in changes.items():
            section, field_name = name.split(".")
            plain[section][field_name] = yaml.safe_load(text)
        changed[file] = from_dict(RunConfig, plain)
    for file, config in changed.items():
        save_yaml(config, file)


def prepare_tokenizer(
    config: RunConfig,
    records: Sequence[Record],
    console: Console | None = None,
    resumed: Path | None = None,
) -> Tokenizer:
    """Return the tokenizer of the start, a stored one, or one trained on the data.

    A task on images alone, whose data has no text, gets a placeholder without words.

    Args:
        config: Names the start, or a file.
        records: The training data.
        console: Where to report that there are no words; standard output if absent.
        resumed: A run folder that holds the tokenizer of its first start, so that millions of texts
            are not gone through again.

    Raises:
        DataError: There are no words for a task that reads texts.
    """
    use = task_spec(config.task).tokenizer
    if use == "none":
        return Tokenizer.without_words()
    if config.model.init_from is not None:
        return _started_tokenizer(config, config.model.init_from)
    if config.tokenizer.path is not None:
        return Tokenizer.load(config.tokenizer.path)
    if config.model.init_text_from is not None:
        return load_published_tokenizer(Path(config.model.init_text_from))
    if resumed is not None and (resumed / TOKENIZER_FILE).is_file():
        return Tokenizer.load(resumed)
    texts = RecordTexts(records)
    has_texts = any(True for _ in texts)
    if not has_texts and use == "optional":
        if is_main():
            (console or Console()).print(WORDLESS, highlight=False, markup=False)
        return Tokenizer.without_words()
    if not has_texts:
        raise DataError(
            "the training data holds no text to train a tokenizer on: give captions, questions or "
            "phrases, or a tokenizer with --tokenizer.path"
        )
    return Tokenizer.train(texts, config.tokenizer.vocab_size, config.tokenizer.num_unused)


def _started_tokenizer(config: RunConfig, folder: str) -> Tokenizer:
    """Return the tokenizer of the model that a run starts from."""
    content = open_model_folder(folder, to_model_folder)
    if content.config.get("text", {}) is None:
        raise ConfigError(
            f"{folder} (model.init_from) holds an image tokenizer, and {config.recipe} does not "
            "train one: name another model there, or this one as task.image_tokenizer of a recipe "
            "that has one"
        )
    tokenizer = Tokenizer.load(content.tokenizer_path)
    if not tokenizer.has_words and task_spec(config.task).tokenizer == "required":
        raise DataError(
            f"{folder} was trained on images alone and has no vocabulary, so it cannot start a "
            "task on texts: train it again with --tokenizer.path"
        )
    return tokenizer


def prepare_model(config: RunConfig, tokenizer: Tokenizer, console: Console | None = None) -> Any:
    """Build a randomly initialised model, or load one from a model folder.

    Args:
        config: Says what to build and which published weights its parts start from.
        tokenizer: Its size is the vocabulary of a new model.
        console: Where to report what the parts start from; standard output if absent.

    Raises:
        ConfigError: The task trains models of another family, a text length exceeds the model's
            position table, or the fusion network that was chosen does not exist in the model.
    """
    source, spec = config.model, task_spec(config.task)
    reads_text = spec.tokenizer != "none"
    if source.init_from is None:
        size = model_config(
            source.name,
            image_size=source.image_size,
            vocab_size=tokenizer.vocab_size if reads_text else None,
        )
        model = build_model(choose_fusion(size, source))
        check_model(config.task, model, config.recipe, f"model.name = {source.name}")
        for line in init_parts(model, source):
            if is_main():
                (console or Console()).print(line, highlight=False)
    elif spec.load_model is not None:
        model = spec.load_model(source.init_from, source.image_size)
    else:
        model = load_model(
            source.init_from, device="cpu", train=True, image_size=source.image_size
        ).model
        check_model(config.task, model, config.recipe, f"{source.init_from} (model.init_from)")
    if source.drop_path is not None:
        _set_drop_path(model, source.drop_path)
    if reads_text:
        _check_text_lengths(config, model)
    return model


def _check_text_lengths(config: RunConfig, model: Any) -> None:
    longest = max(
        config.captions.max_text_tokens,
        config.lengths.question,
        config.lengths.answer,
        config.lengths.phrase,
        getattr(config.task, "max_text_tokens", 0),
    )
    positions = model_sizes(model.config).max_tokens
    if longest > positions:
        raise ConfigError(
            f"a text may have {longest} tokens but the model reads {positions}: lower "
            "captions.max_text_tokens, task.max_text_tokens or lengths.*, "
            "or take a model with more positions"
        )


def _set_drop_path(model: Any, rate: float) -> None:
    if not hasattr(model, "set_drop_path"):
        raise ConfigError(f"model.drop_path = {rate}: this model skips no branches; omit it")
    model.set_drop_path(rate)
