"""The classifiers of released fine-tuned files, with the settings that the files do not hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from triptych.checkpoint.foreign import ForeignCheckpoint
from triptych.checkpoint.model_folder import ModelFolder
from triptych.core.errors import CheckpointError, ConfigError, DataError
from triptych.models.conversion import Converter, ImportReport
from triptych.tasks.finetuning.image_text_classification import AnswerClassificationConfig
from triptych.tasks.finetuning.nlvr2 import VLMO_NLVR2, NLVR2Config
from triptych.tasks.registry import build_task
from triptych.text import Tokenizer

IN_FILE = "_classifier."


@dataclass(frozen=True, slots=True)
class ReleasedHead:
    """A classifier that a file holds.

    Attributes:
        task: Settings of the task that it belongs to.
        weights: By our names.
    """

    task: AnswerClassificationConfig | NLVR2Config
    weights: dict[str, Tensor]

    def check_fits(self, model: Any, tokenizer: Tokenizer, path: Path) -> None:
        """Raise a CheckpointError unless the task's own head takes the weights."""
        own = build_task(self.task, model, tokenizer).modules["head"].state_dict()
        for name in sorted(own.keys() | self.weights.keys()):
            shapes = [tuple(s[name].shape) if name in s else None for s in (self.weights, own)]
            if shapes[0] != shapes[1]:
                raise CheckpointError(
                    f"{path}: its classifier's {name} is {shapes[0]}, but that of "
                    f"{type(self.task).__name__} is {shapes[1]}"
                )

    def note_in(self, report: ImportReport) -> None:
        """Move the classifier from what was left out to what was loaded."""
        for name in [name for name in report.dropped if IN_FILE in name]:
            del report.dropped[name]
        report.loaded += [f"head.{name}" for name in self.weights]


def read_head(
    converter: Converter, foreign: ForeignCheckpoint, trained_for: str, answers: Path | None
) -> ReleasedHead | None:
    """Return the classifier of a file; None if it has none, or one of answers that nobody names.

    Args:
        converter: Of the file's family.
        foreign: The file.
        trained_for: What it was trained for.
        answers: The list of a VQA classifier, in the order of its scores.

    Raises:
        ConfigError: There are answers, but no classifier of answers.
        DataError: The list cannot be read, or is not as long as the classifier is wide.
    """
    find = converter.import_head
    weights = None if find is None else find(foreign.tensors)
    if weights is not None and trained_for == "nlvr2" and answers is None:
        return ReleasedHead(VLMO_NLVR2, weights)
    if weights is not None and trained_for == "vqa":
        if answers is None:
            return None
        listed = read_answers(answers)
        classes = len(weights["4.bias"]) if "4.bias" in weights else 0
        if len(listed) != classes:
            raise DataError(f"{answers} has {len(listed)} answers; {foreign.path} scores {classes}")
        return ReleasedHead(AnswerClassificationConfig(answers=listed), weights)
    if answers is not None:
        raise ConfigError(f"{foreign.path} has no classifier of answers: leave --answers out")
    return None


def read_answers(path: Path) -> tuple[str, ...]:
    """Read a list of answers: a JSON list in a `.json` file, else one answer a line.

    Raises:
        DataError: It cannot be read, or an answer is empty or stands twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the answers of {path}: {error}") from error
    if not isinstance(found, list) or not all(isinstance(a, str) and a.strip() for a in found):
        raise DataError(f"{path} must be a list of answers, none of them empty")
    if len(set(found)) < len(found):
        twice = next(answer for answer in found if found.count(answer) > 1)
        raise DataError(f"{path}: the answer {twice!r} stands twice")
    return tuple(answer.strip() for answer in found)


def export_head(converter: Converter, content: ModelFolder) -> tuple[dict[str, Tensor], str]:
    """Return a folder's classifier under the released names, and what the file's user must know."""
    if not content.head:
        return {}, ""
    task = content.config.get("task") or {}
    names = converter.head_names(content.head, str(task.get("kind")))
    if names is None:
        return {}, "its classifier (head.safetensors) has no place there and is left out"
    note = ""
    if task.get("answers"):
        note = "the classifier's answers stand in config.json of the folder, not in the file"
    return {names[name]: tensor for name, tensor in content.head.items()}, note
