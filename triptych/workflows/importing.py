"""From a released checkpoint to a model folder, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from triptych.checkpoint.foreign import (
    ForeignCheckpoint,
    read_foreign,
    write_foreign,
    write_foreign_folder,
)
from triptych.checkpoint.model_folder import (
    ModelFolder,
    build_model_card,
    load_model_folder,
    save_model_folder,
    stored_config,
)
from triptych.checkpoint.released import find_folder, with_preprocessor
from triptych.core.config import from_dict, kind_of, to_dict
from triptych.core.errors import (
    CapabilityError,
    CheckpointError,
    ConfigError,
    DataError,
    TriptychError,
    nearest,
)
from triptych.core.machine import current_commit
from triptych.core.reading import read_json, read_text, read_yaml, reading
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.models.conversion import Allowed, Converter, ImportReport
from triptych.models.families import (
    CONVERTERS,
    FAMILIES,
    build_model,
    list_models,
    model_config,
    model_config_of,
    model_sizes,
    recognised_families,
    restore_model,
)
from triptych.tasks.finetuning.image_text_classification import AnswerClassificationConfig
from triptych.tasks.finetuning.nlvr2 import VLMO_NLVR2, NLVR2Config
from triptych.tasks.registry import build_task, task_spec, trained_for_words
from triptych.tasks.spec import TextLengths
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
        """Move the classifier from the skipped tensors to the loaded ones."""
        for name in [name for name in report.dropped if IN_FILE in name]:
            del report.dropped[name]
        report.loaded += [f"head.{name}" for name in self.weights]


def read_head(
    converter: Converter, foreign: ForeignCheckpoint, trained_for: str, answers: Path | None
) -> ReleasedHead | None:
    """Return the classifier of a file; None if there is none, or no list of its answers.

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
        raise ConfigError(f"{foreign.path} has no classifier of answers: omit --answers")
    return None


def read_answers(path: Path) -> tuple[str, ...]:
    """Read a list of answers: a JSON list in a `.json` file, else one answer a line.

    Raises:
        DataError: It cannot be read, or an answer is empty or repeated.
    """
    found = read_json(path) if path.suffix == ".json" else read_text(path).splitlines()
    if not isinstance(found, list) or not all(isinstance(a, str) and a.strip() for a in found):
        raise DataError(f"{path} must be a list of answers, none of them empty")
    if len(set(found)) < len(found):
        twice = next(answer for answer in found if found.count(answer) > 1)
        raise DataError(f"{path}: the answer {twice!r} is repeated")
    return tuple(answer.strip() for answer in found)


def export_head(converter: Converter, content: ModelFolder) -> tuple[dict[str, Tensor], str]:
    """Return a folder's classifier under the released names, and what the file's user must know."""
    if not content.head:
        return {}, ""
    task = content.config.get("task") or {}
    names = converter.head_names(content.head, str(task.get("kind")))
    if names is None:
        return {}, "its classifier (head.safetensors) cannot be stored there and is skipped"
    note = ""
    if task.get("answers"):
        note = "the classifier's answers stand in config.json of the folder, not in the file"
    return {names[name]: tensor for name, tensor in content.head.items()}, note


ROOM, MIN_WEIGHTS = 4, 1 << 26
"""A model may have this many times the weights of its file, and as many more; others are drawn."""

PADDED_VOCABULARY = 128
"""This many rows of a token table may be without a token, as where it is padded for speed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSettings:
    """What a released file does not record.

    Attributes:
        variant: A registered variant, or a `.yaml` or `.json` file with the fields of a model
            config, for a file of unusual sizes.
        tokenizer: `vocab.txt`, `tokenizer.json` or a folder with one; None takes the source's own.
        image_size: Side of the input in pixels, to which position tables are resized; None keeps
            the file's.
        trained_for: What the file was trained for; None goes by its names.
        allow: Kinds of faults that are reported instead of raised.
        answers: The list of a VQA classifier: a file with an answer a line, or a JSON list, in the
            order of the scores.
    """

    variant: str
    tokenizer: Path | None = None
    image_size: int | None = None
    trained_for: str | None = None
    allow: tuple[Allowed, ...] = ()
    answers: Path | None = None


def import_checkpoint(
    family: str, source: Path, out: Path, settings: ImportSettings
) -> ImportReport:
    """Write a model folder with the weights of a released checkpoint.

    Args:
        family: Such as "mplug".
        source: A file or folder that the family's released code wrote, or a hub id of one.
        out: The new model folder; it appears whole or not at all.
        settings: What the file does not record.

    Returns:
        What became of every tensor.

    Raises:
        CheckpointError: The file is damaged, of another family or of other sizes, or the folder
            exists.
        ConfigError: There is no such family or variant.
    """
    converter = CONVERTERS.get(family)
    if out.exists():
        raise CheckpointError(f"{out} exists: choose another folder, or remove it")
    config = _base_config(family, settings.variant)
    foreign = read_foreign(find_folder(source))
    _check_family(family, foreign)
    task = _task(settings.trained_for, converter, foreign)
    if foreign.config and converter.config_from_folder is not None:
        config = converter.config_from_folder(foreign.config, config)
    config = converter.adapt_config(
        foreign.tensors, config, image_size=settings.image_size, trained_for=task
    )
    tokenizer = _load_tokenizer(settings.tokenizer, foreign, model_sizes(config).vocab_size)
    what = f"{source} as {settings.variant}"
    with reading(foreign.path, CheckpointError):
        model, report = _import(converter, foreign, config, task, what, settings.allow)
    head = read_head(converter, foreign, task, settings.answers)
    if head is not None:
        head.check_fits(model, tokenizer, foreign.path)
        head.note_in(report)
    facts = _provenance(foreign, settings.variant, report)
    images = _images(foreign.path, converter, model, resized=settings.image_size is not None)
    _save(out, converter, model, tokenizer, task, facts, report.contrast, head, images)
    return report


def export_checkpoint(family: str, folder: Path, out: Path) -> tuple[int, str]:
    """Write a model folder in the layout of its family's released code.

    Args:
        family: Such as "mplug".
        folder: A model folder, trained here or imported.
        out: A new `.pth`, `.pt`, `.bin` or `.safetensors` file; for a family that transformers
            knows also a new folder, which gets its `config.json` and `tokenizer.json`.

    Returns:
        How many tensors were written, and what the user of the file must know.

    Raises:
        CheckpointError: The folder cannot be read or is of another family, or `out` exists.
        CapabilityError: The layout cannot express the model.
    """
    converter = CONVERTERS.get(family)
    if out.exists():
        raise CheckpointError(f"{out} exists: choose another name, or remove it")
    content = load_model_folder(folder)
    stored = stored_config(content.config, folder)
    if stored.get("kind") != family:
        raise CheckpointError(f"{folder} holds a model of {stored.get('kind')}, not of {family}")
    model = restore_model(stored, content.state_dict, str(folder))
    tensors = converter.export_state(model) | _contrast_tensors(converter, content.config)
    notes = [] if converter.export_note is None else [converter.export_note(model)]
    head, head_note = export_head(converter, content)
    note = "; ".join(notes + ([head_note] if head_note else []))
    tensors |= head
    if out.suffix:
        write_foreign(out, tensors, wrapper=converter.wrapper)
        return len(tensors), note
    if converter.folder_configs is None:
        raise CapabilityError(
            f"{out}: {FAMILIES.get(family).title} is exported to a file: let the name end in .pth"
        )
    images = from_dict(ImageTransformConfig, content.preprocess, "preprocess")
    configs = converter.folder_configs(model, images.mean, images.std)
    write_foreign_folder(out, tensors, configs, [content.tokenizer_path])
    return len(tensors), note


def _contrast_tensors(converter: Converter, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the scalars of contrastive losses that a folder keeps, under the released names."""
    stored = config.get("contrast") or {}
    return {
        name: torch.tensor(float(stored[ours]))
        for ours, name in converter.contrast.items()
        if ours in stored
    }


def _task(asked: str | None, converter: Converter, foreign: ForeignCheckpoint) -> str:
    """Return what the file was trained for, as given or by its names."""
    known = trained_for_words()
    if asked is not None and asked not in known:
        raise ConfigError(
            f"trained_for = {asked!r}: must be one of {', '.join(sorted(known))}"
            f"{nearest(asked, known)}"
        )
    return asked or converter.trained_for(foreign.tensors)


def _base_config(family: str, variant: str) -> Any:
    """Return the config of a registered variant, or the one that a file holds."""
    if Path(variant).suffix in (".yaml", ".yml", ".json"):
        plain = read_yaml(Path(variant))
        if not isinstance(plain, dict):
            raise ConfigError(f"{variant}: expected the fields of a model config")
        with reading(variant, ConfigError):
            try:
                return model_config_of(family, plain)
            except ConfigError as error:
                raise ConfigError(f"{variant}: {error}") from error
    config = model_config(variant)
    if kind_of(type(config)) != family:
        own = [name for name in list_models() if kind_of(type(model_config(name))) == family]
        raise ConfigError(f"{variant} is no variant of {family} (its variants: {', '.join(own)})")
    return config


def _check_family(family: str, foreign: ForeignCheckpoint) -> None:
    """Raise where the names of a file are not the family's."""
    if isinstance(foreign.config.get("model"), dict):
        raise CheckpointError(f"{foreign.path} is a model folder already: use it as it is")
    found = recognised_families(foreign.tensors)
    if family in found:
        return
    clue = f"; its names are those of {found[0]}" if found else ""
    some = ", ".join(list(foreign.tensors)[:3])
    raise CheckpointError(
        f"{foreign.path} is no checkpoint of {FAMILIES.get(family).title}{clue} (such as {some})"
    )


def _load_tokenizer(path: Path | None, foreign: ForeignCheckpoint, vocab_size: int) -> Tokenizer:
    """Return the tokenizer, which must fit the token table."""
    if path is None:
        own = [foreign.path / name for name in ("tokenizer.json", "vocab.txt")]
        found = [file for file in own if file.is_file()]
        if not found:
            raise CheckpointError(
                f"{foreign.path} comes without its vocabulary: name it with --tokenizer PATH "
                "(a vocab.txt or tokenizer.json; the released models read bert-base-uncased's)"
            )
        path = found[0]
    tokenizer = Tokenizer.load(path)
    if not 0 <= vocab_size - tokenizer.vocab_size < PADDED_VOCABULARY:
        raise CheckpointError(
            f"{path} has {tokenizer.vocab_size} tokens, but the token table of {foreign.path} has "
            f"{vocab_size}: they belong to different models"
        )
    return tokenizer


def _import(
    converter: Converter,
    foreign: ForeignCheckpoint,
    config: Any,
    task: str,
    what: str,
    allow: Collection[Allowed],
) -> tuple[Any, ImportReport]:
    """Build the model with the file's tensors; only what the file lacks is randomly initialised."""
    with torch.device("meta"):
        model = build_model(config)
    report = converter.import_state(foreign.tensors, model)
    try:
        report.require(what, optional=converter.optional(task), allow=allow)
    except CheckpointError as error:
        others = _fitting_variants(converter, foreign, task)
        clue = f". The file fits {' and '.join(others)}" if others else ""
        raise CheckpointError(f"{error}{clue}") from error
    if _is_whole(model):
        return model, report
    own = sum(parameter.numel() for parameter in model.parameters())
    held = sum(tensor.numel() for tensor in foreign.tensors.values())
    if own > ROOM * held + MIN_WEIGHTS:
        raise CheckpointError(f"{what} would have {own:,} weights, and the file has {held:,}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(config)
    return model, converter.import_state(foreign.tensors, model)


def _fitting_variants(converter: Converter, foreign: ForeignCheckpoint, task: str) -> list[str]:
    """Return the registered variants that the file fills, for the message of a failed import."""
    found: list[str] = []
    for name in FAMILIES.get(converter.family).variants:
        try:
            config = converter.adapt_config(
                foreign.tensors, model_config(name), image_size=None, trained_for=task
            )
            with torch.device("meta"):
                model = build_model(config)
            report = converter.import_state(foreign.tensors, model)
            report.require(name, optional=converter.optional(task))
        except TriptychError:
            continue
        found.append(name)
    return found


def _is_whole(model: nn.Module) -> bool:
    return not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


def _provenance(foreign: ForeignCheckpoint, variant: str, report: ImportReport) -> dict[str, str]:
    """Say where the weights come from, for the model card."""
    facts = {"file": foreign.path.name, "variant": variant, "import": report.summary(long=False)}
    if foreign.path.is_file():
        with foreign.path.open("rb") as file:
            facts["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return facts


def _images(
    source: Path, converter: Converter, model: Any, *, resized: bool
) -> ImageTransformConfig:
    """Return how images are prepared: by a folder's own file, else as the family's."""
    found = {"image_size": model.image_size, "mean": converter.mean, "std": converter.std}
    if source.is_dir():
        found = with_preprocessor(source, found, resized=resized)
    return ImageTransformConfig(
        image_size=found["image_size"], mean=tuple(found["mean"]), std=tuple(found["std"])
    )


def _save(
    out: Path,
    converter: Converter,
    model: Any,
    tokenizer: Tokenizer,
    task: str,
    facts: dict[str, str],
    contrast: Mapping[str, float],
    head: ReleasedHead | None,
    images: ImageTransformConfig,
) -> None:
    trained_for = task if head is None else task_spec(head.task).trained_for
    title = FAMILIES.get(converter.family).title
    positions = model_sizes(model.config).max_tokens
    longest = min(converter.max_text_tokens, positions)
    limits = to_dict(TextLengths(question=converter.max_question_tokens))
    lengths = {name: min(value, positions) for name, value in limits.items()}
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    card = build_model_card(
        title=f"{title}, imported from {facts['file']}",
        summary=(
            f"{title} with {millions:.1f} M parameters, trained for {task} elsewhere: "
            f"{converter.source}."
        ),
        data={"not known": "the file does not say what it was trained on"},
        recipe=yaml.safe_dump(facts, sort_keys=False, allow_unicode=True),
        metrics=(),
        commit=current_commit(),
    )
    save_model_folder(
        out,
        config={
            "model": to_dict(model.config, tagged=True),
            "trained_for": [trained_for],
            **({} if head is None else {"task": to_dict(head.task, tagged=True)}),
            **({"contrast": dict(contrast)} if contrast else {}),
            "text": {"max_text_tokens": longest, "max_words": converter.max_words, **lengths},
        },
        state_dict=model.state_dict(),
        tokenizer_json=tokenizer.to_json(),
        preprocess=to_dict(images),
        card=card,
        head=None if head is None else head.weights,
    )
