"""The history of a run out of its folder, for the run doctor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from triptych.core.config import load_yaml
from triptych.core.errors import DataError, TriptychError
from triptych.core.reading import read_bytes, reading
from triptych.recipes.config import RunConfig
from triptych.train.history import History, RunFacts
from triptych.train.metrics_log import METRICS_FILE
from triptych.workflows.prepared import run_facts
from triptych.workflows.run import CONFIG_FILE


def runs_in(folder: Path) -> list[Path]:
    """Return a run folder, or the runs of the stages in it, in the order of their logs."""
    logs = [path for path in folder.glob(f"*/{METRICS_FILE}") if path.is_file()]
    if (folder / METRICS_FILE).exists() or not logs:
        return [folder]
    return [log.parent for log in sorted(logs, key=lambda log: log.stat().st_mtime)]


def read_history(folder: Path, warn: Callable[[str], None] | None = None) -> History:
    """Return what a run has logged.

    Args:
        folder: The run folder.
        warn: Called with a line for each thing that could not be read.

    Raises:
        DataError: There is no log, or no line of it is one.
    """
    tell = warn or (lambda line: None)
    path = folder / METRICS_FILE
    if not path.is_file():
        raise DataError(
            f"{folder} holds no {METRICS_FILE}: name the folder that was given as --out, or one of "
            "the stages in it; a run writes the file with its first line of numbers"
        )
    history = History(_facts(folder, tell))
    bad = 0
    with reading(path, DataError):
        content = read_bytes(path).decode("utf-8", errors="replace")
    for text in content.splitlines():
        bad += bool(text.strip()) and not _add(history, text)
    if not history.curves:
        raise DataError(f"{path} holds no line of numbers: the run has not logged a step yet")
    if bad:
        tell(f"{path}: {bad:,} lines are not lines of metrics, and were skipped")
    return history


def _add(history: History, text: str) -> bool:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(line, dict) and history.add(line)


def _facts(folder: Path, tell: Callable[[str], None]) -> RunFacts:
    """Return what the run's configuration says; nothing where it cannot be read."""
    path = folder / CONFIG_FILE
    try:
        if not path.is_file():
            raise DataError(f"{path} is missing")
        config = load_yaml(RunConfig, path)
        return run_facts(config, config.train.num_processes)
    except (TriptychError, OSError, UnicodeDecodeError) as error:
        tell(f"without the configuration chance values are unknown: {error}")
        return RunFacts()
