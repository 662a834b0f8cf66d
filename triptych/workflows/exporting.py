"""A model folder from a checkpoint of a run, whether it has ended, was stopped or is training.

What the run itself would write at its end, without a GPU and without other processes. The run
folder is only read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.checkpoint.model_folder import load_model_folder, save_model_folder
from triptych.checkpoint.run import list_checkpoints, load_checkpoint, load_latest
from triptych.core.config import load_yaml
from triptych.core.errors import CheckpointError, ConfigError, DataError
from triptych.core.reading import BAD_CONTENT, read_json_object
from triptych.models.families import build_model, read_config
from triptych.recipes.config import RunConfig
from triptych.tasks.registry import build_task
from triptych.text import Tokenizer
from triptych.train.state import load_modules
from triptych.train.trainer import CHECKPOINTS
from triptych.train.validation import read_validation
from triptych.workflows.adapting import adapt_model, freeze_parts
from triptych.workflows.run import (
    CONFIG_FILE,
    START_FILE,
    TOKENIZER_FILE,
    prepare_model,
    prepare_tokenizer,
)
from triptych.workflows.sources import TrainingData, read_training_data
from triptych.workflows.trained_model import save_model, trained_parts
from triptych.workflows.validation import BEST_FOLDER

MODULES = "/modules/"
"""Where a checkpoint holds the weights."""


def export_model(
    run_folder: Path,
    out: Path,
    *,
    step: int | None = None,
    warn: Callable[[str], None] = lambda message: None,
) -> int:
    """Write the model folder of a run as of one of its checkpoints.

    Runs that began with an older version did not store all that this needs: their training data is
    read for it, as it is for the reward of SCST.

    Args:
        run_folder: With `config.yaml` and `checkpoints/`.
        out: The model folder; it may not lie in the run folder.
        step: Whose checkpoint; None takes the newest that is undamaged.
        warn: Called with a line for each newer checkpoint that had to be passed over.

    Returns:
        The step of the checkpoint.

    Raises:
        CheckpointError: There is no such checkpoint, it is damaged, or the folder cannot be
            written.
        ConfigError: `out` lies in the run folder.
        DataError: The training data is needed and cannot be read.
    """
    _check_folders(run_folder, out)
    config = load_yaml(RunConfig, run_folder / CONFIG_FILE)
    step, state = _read_state(run_folder / CHECKPOINTS, step, warn)
    start = _read_start(run_folder, config)
    model = build_model(start.model_config)
    adapt_model(config, model)
    try:
        task = build_task(config.task, model, start.tokenizer)
    except DataError:  # its objective is made from the records
        task = build_task(config.task, model, start.tokenizer, _read_data(config).records)
    freeze_parts(config, task)
    load_modules(task.modules, state["modules"])
    validation = state.get("validation", {})
    last, note = read_validation(validation.get("last")), validation.get("note", "")
    parts = trained_parts(task, run_folder, step, last, ended=False, note=note)
    save_model(out, config, model, start.tokenizer, start.num_records, parts)
    return step


def export_best(run_folder: Path, out: Path) -> None:
    """Copy the best model of a run by validation, which may be replaced meanwhile.

    Args:
        run_folder: A run with held-out data.
        out: The model folder; it may not lie in the run folder.

    Raises:
        CheckpointError: The run has no best model, or the folder cannot be written.
        ConfigError: `out` lies in the run folder.
    """
    _check_folders(run_folder, out)
    best = run_folder / BEST_FOLDER
    if not best.is_dir():
        raise CheckpointError(
            f"{run_folder} holds no best model: {BEST_FOLDER}/ is missing; a run keeps one that is "
            "validated (--data.val PATH or --data.val-share 0.05), from its first validation on"
        )
    number = best.stat().st_ino
    try:
        found = load_model_folder(best, merged=False)
        tokenizer = found.tokenizer_json
    except (CheckpointError, OSError):
        if _is_same(best, number):
            raise
        return export_best(run_folder, out)
    if not _is_same(best, number):  # files of two models
        return export_best(run_folder, out)
    save_model_folder(
        out,
        config=found.config,
        state_dict=found.state_dict,
        tokenizer_json=tokenizer,
        preprocess=found.preprocess,
        card=found.card,
        head=found.head or None,
        adapter=found.adapter,
    )
    return None


def _is_same(folder: Path, number: int) -> bool:
    """Return whether a folder is the one that had this inode."""
    return folder.is_dir() and folder.stat().st_ino == number


def _check_folders(run_folder: Path, out: Path) -> None:
    if not (run_folder / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{run_folder} holds no run: {CONFIG_FILE} is missing; name the folder that was given "
            "as --out, or that of one stage of a stagewise run"
        )
    if out.resolve().is_relative_to(run_folder.resolve()):
        raise ConfigError(f"{out} lies in the run folder, which stays as it is: choose another")


def _read_state(
    folder: Path, step: int | None, warn: Callable[[str], None]
) -> tuple[int, dict[str, Any]]:
    steps = list_checkpoints(folder)
    if step is not None and step in steps:
        return step, load_checkpoint(folder / f"step_{step}", only=MODULES)
    found = None if step is not None else load_latest(folder, only=MODULES, warn=warn)
    if found is None:
        there = f"there are those of steps {', '.join(map(str, steps))}" if steps else "it has none"
        which = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise CheckpointError(f"{folder} holds no {which}: {there}")
    return found


@dataclass(frozen=True, slots=True)
class _Start:
    """What a run was built from, beside its config."""

    model_config: Any
    tokenizer: Tokenizer
    num_records: int


def _read_start(run_folder: Path, config: RunConfig) -> _Start:
    """Read what the run stored when it began, or make it again from the data."""
    if not (run_folder / START_FILE).exists():
        records = _read_data(config).records
        tokenizer = prepare_tokenizer(config, records, resumed=run_folder)
        return _Start(prepare_model(config, tokenizer).config, tokenizer, len(records))
    try:
        stored = read_json_object(run_folder / START_FILE, error=CheckpointError)
        tokenizer = Tokenizer.load(run_folder / TOKENIZER_FILE)
        where = str(run_folder / START_FILE)
        return _Start(read_config(stored["model"], where), tokenizer, int(stored["num_records"]))
    except BAD_CONTENT as error:
        raise CheckpointError(f"{run_folder / START_FILE} cannot be read: {error}") from error


def _read_data(config: RunConfig) -> TrainingData:
    with tempfile.TemporaryDirectory(prefix="triptych_") as scratch:  # for what is skipped
        return read_training_data(config, Path(scratch))
