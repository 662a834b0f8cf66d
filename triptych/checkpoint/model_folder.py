"""Model folders: what `load`, `serve` and `eval` take, and what a run leaves behind.

`config.json`, `model.safetensors`, `tokenizer.json`, `preprocess.json`, `README.md` (the model
card), and `head.safetensors` where a task put a classifier on the model. A model that reads no
text has no `tokenizer.json`, and `"text": null` in `config.json`. Where low-rank adaptation is kept
beside the weights, peft's `adapter_config.json` and `adapter_model.safetensors` hold the change of
`model.safetensors`, and whoever loads the folder gets the weights with it. Nothing is pickled.

`SHA256SUMS` has the hash of each file but the card, which its owner may edit: `load` compares them,
and so does `sha256sum -c SHA256SUMS`; `TRIPTYCH_VERIFY=0` leaves that out. A folder without it, as
earlier versions wrote, loads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from triptych.checkpoint.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    Adapter,
    merge,
    read_adapter,
    write_adapter,
)
from triptych.checkpoint.nested import split_tensors
from triptych.checkpoint.tensor_file import check_layout, read_tensors, write_tensors
from triptych.core.errors import CheckpointError
from triptych.core.files import placed, write_atomic, write_json, writing
from triptych.core.outputs import MetricValue
from triptych.core.reading import (
    MAX_SETTINGS_BYTES,
    check_regular,
    open_regular,
    read_bytes,
    read_json_object,
    read_text,
    reading,
)

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
PREPROCESS, CARD, HEAD = "preprocess.json", "README.md", "head.safetensors"
SUMS = "SHA256SUMS"
VERIFY_VARIABLE = "TRIPTYCH_VERIFY"
"""Set to 0, weights of trusted disks are not hashed at each load: 0.6 s a GB."""

_NEEDED = frozenset({CONFIG, WEIGHTS, PREPROCESS})
FILES = _NEEDED | {TOKENIZER, CARD, HEAD, SUMS, ADAPTER_CONFIG, ADAPTER_WEIGHTS}
"""All that a model folder may hold."""
CARD_FOLDER = "path/to/this/folder"
"""What a card calls the folder that it lies in."""
_SUM = re.compile(r"([0-9a-f]{64}) [ *]([^/\\\n]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """The content of a model folder.

    Attributes:
        config: Plain values that the model is built from.
        state_dict: Weights by name, on the CPU; tied names hold one tensor.
        tokenizer_path: The folder's `tokenizer.json`, which a model without text does not have.
        preprocess: Plain values of the image transform, such as size, mean and deviation.
        card: Markdown text of the model card; empty if there is none.
        head: Weights of the task's classifier, on the CPU; empty if there is none.
        adapter: A change of the weights that is not in them yet; None if there is none.
    """

    config: dict[str, Any]
    state_dict: dict[str, Tensor]
    tokenizer_path: Path
    preprocess: dict[str, Any]
    card: str
    head: dict[str, Tensor] = field(default_factory=dict)
    adapter: Adapter | None = None

    @property
    def tokenizer_json(self) -> str | None:
        """Content of `tokenizer.json`; None for a model that reads no text."""
        path = self.tokenizer_path
        return path.read_text(encoding="utf-8") if path.is_file() else None


def save_model_folder(
    folder: Path,
    *,
    config: dict[str, Any],
    state_dict: Mapping[str, Tensor],
    tokenizer_json: str | None,
    preprocess: dict[str, Any],
    card: str,
    head: Mapping[str, Tensor] | None = None,
    adapter: Adapter | None = None,
) -> Path:
    """Write a model folder; an older model folder of that name is replaced as a whole.

    Args:
        folder: Where; its parents are made.
        config: JSON values that the model can be built from.
        state_dict: Weights by name, on any device; tied tensors are stored once.
        tokenizer_json: Content of `tokenizer.json`; None for a model that reads no text.
        preprocess: JSON values of the image transform.
        card: Markdown text, as `build_model_card` returns it.
        head: Weights of the task's classifier, if it has one.
        adapter: A change of the weights that is kept beside them.

    Returns:
        `folder`.

    Raises:
        CheckpointError: The folder holds files that are not a model folder's, or cannot be written.
    """
    others = sorted({path.name for path in folder.glob("*")} - FILES) if folder.exists() else []
    if others or folder.is_file():
        raise CheckpointError(
            f"{folder} is not a model folder ({others[0] if others else 'a file'} is in the way): "
            "choose another folder"
        )
    with writing(f"model folder {folder}", folder, kind=CheckpointError):
        with placed(folder) as temporary:
            temporary.mkdir()
            sums = {WEIGHTS: _save_weights(temporary / WEIGHTS, state_dict)}
            if head is not None:
                sums[HEAD] = _save_weights(temporary / HEAD, head)
            if adapter is not None:
                sums |= write_adapter(temporary, adapter, state_dict)
            if tokenizer_json is not None:
                write_atomic(temporary / TOKENIZER, tokenizer_json)
            write_json(temporary / PREPROCESS, preprocess)
            write_json(temporary / CONFIG, config)
            sums |= {p.name: _sha256(p) for p in _hashed_files(temporary) if p.name not in sums}
            write_atomic(temporary / SUMS, "".join(f"{sums[n]}  {n}\n" for n in sorted(sums)))
            write_atomic(temporary / CARD, card)
            aside = folder.with_name(f".{folder.name}.old{os.getpid()}")
            if folder.exists():
                folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def load_model_folder(folder: Path, *, merged: bool = True) -> ModelFolder:
    """Read a model folder.

    Args:
        folder: Where.
        merged: Whether a change that is kept beside the weights is put into them.

    Raises:
        CheckpointError: The folder or one of its files is missing or damaged; the message names it.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"no model folder at {folder}; `triptych train` and `triptych import` write one"
        )
    missing = {name for name in _NEEDED if not (folder / name).exists()}
    config = {} if CONFIG in missing else _read_json(folder / CONFIG)
    if config.get("text", {}) is not None and not (folder / TOKENIZER).exists():
        missing.add(TOKENIZER)
    if missing:
        raise CheckpointError(
            f"{folder} is not a model folder: {', '.join(sorted(missing))} is missing; "
            "name the folder that holds config.json, such as RUN_FOLDER/model"
        )
    if os.path.lexists(folder / SUMS) and os.environ.get(VERIFY_VARIABLE, "1") != "0":
        _compare_sums(folder)
    head, weights = folder / HEAD, _load_weights(folder / WEIGHTS)
    adapter = None
    if (folder / ADAPTER_CONFIG).exists() or (folder / ADAPTER_WEIGHTS).exists():
        adapter = read_adapter(folder)
        if merged:
            weights, adapter = merge(weights, adapter, str(folder)), None
    return ModelFolder(
        config=config,
        state_dict=weights,
        tokenizer_path=folder / TOKENIZER,
        preprocess=_read_json(folder / PREPROCESS),
        card=_read_card(folder / CARD),
        head=_load_weights(head) if head.exists() else {},
        adapter=adapter,
    )


def hash_model_folder(folder: Path) -> str:
    """Return a hash of the files that `SHA256SUMS` names, by name and content, with or without it.

    It says which model made predictions, scores and indexes.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in _hashed_files(folder):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _hashed_files(folder: Path) -> list[Path]:
    """Return the files that make a model what it is: all but the card, the sums and hidden ones."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in (CARD, SUMS) and not path.name.startswith(".")
    ]


def _compare_sums(folder: Path) -> None:
    """Raise a CheckpointError that names a file which is not as `SHA256SUMS` says."""
    path = folder / SUMS
    advice = f"copy the folder again; if you changed it on purpose, remove {SUMS}"
    lines = read_text(path, error=CheckpointError).splitlines()
    found = [_SUM.fullmatch(line) for line in lines]
    sums = {match[2]: match[1] for match in found if match}
    if len(sums) != len(lines):
        raise CheckpointError(f"{path} is damaged: a line is no SHA-256 and name; {advice}")
    read = {file.name for file in _hashed_files(folder)} & FILES
    for name in sorted(read - sums.keys()):
        raise CheckpointError(f"{folder / name} is not listed in {SUMS}; {advice}")
    for name in sorted(sums):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing: {SUMS} lists it; {advice}")
        _check_length(folder / name)
    with ThreadPoolExecutor(2) as threads:  # the classifier's weights beside the model's
        digests = threads.map(lambda name: _sha256(folder / name), sorted(sums))
    for name, digest in zip(sorted(sums), digests, strict=True):
        if digest != sums[name]:
            raise CheckpointError(
                f"{folder / name} is damaged or was changed: its SHA-256 is not that of {SUMS}; "
                f"{advice}"
            )


def _check_length(path: Path) -> None:
    """Refuse by its length what would take long to hash: a file that has grown to gigabytes."""
    if path.suffix == ".safetensors":
        check_layout(path)
    else:
        with reading(path, CheckpointError):
            check_regular(path, MAX_SETTINGS_BYTES)


def _sha256(path: Path) -> str:
    with reading(path, CheckpointError), open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def stored_config(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the model's part of a folder's `config.json`.

    Raises:
        CheckpointError: There is none.
    """
    plain = config.get("model")
    if not isinstance(plain, dict):
        raise CheckpointError(
            f"{folder / CONFIG}: has no `model`; it is not a Triptych model folder"
        )
    return plain


def _save_weights(path: Path, state_dict: Mapping[str, Tensor]) -> str:
    """Write weights, and return their SHA-256; the file's metadata names those that are tied."""
    skeleton, tensors = split_tensors(dict(state_dict))
    owners: dict[str, str] = {}
    tied: dict[str, str] = {}
    for name, entry in skeleton.items():
        owner = owners.setdefault(entry["__tensor__"], name)
        if owner != name:
            tied[name] = owner
    metadata = {"format": "pt", "tied": json.dumps(tied)}
    named = {owners[key]: tensor for key, tensor in tensors.items()}
    return str(write_tensors(path, named, metadata)["sha256"])


def _load_weights(path: Path) -> dict[str, Tensor]:
    weights, metadata = read_tensors(path)
    with reading(path, CheckpointError):
        tied = json.loads(metadata.get("tied", "{}"))
        return weights | {name: weights[owner] for name, owner in tied.items()}


def _read_json(path: Path) -> dict[str, Any]:
    return read_json_object(path, error=CheckpointError)


def _read_card(path: Path) -> str:
    """Return the card; it is for people, so that a model loads whatever it holds."""
    try:
        return read_bytes(path, MAX_SETTINGS_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def build_model_card(
    *,
    title: str,
    summary: str,
    data: Mapping[str, str],
    recipe: str,
    metrics: Sequence[MetricValue],
    commit: str | None,
    losses: Mapping[str, float] | None = None,
    evaluation: str | None = "TASK",
    usage: str | None = None,
) -> str:
    """Return the Markdown text of a model card.

    Args:
        title: Name of the model, such as "mplug_tiny on the built-in scenes".
        summary: One paragraph: architecture, size, what it was trained for.
        data: What it was trained on: a name and one sentence for each source.
        recipe: The resolved configuration as YAML.
        metrics: Measured numbers with their protocols; may be empty.
        commit: Commit of the code that trained it; None if it is not known.
        losses: The last losses of training by name; may be absent.
        evaluation: Task of `triptych eval` that the model can be scored on; None for none.
        usage: Python lines that use the model; None for a general example.
    """
    front = ["---", "library_name: triptych", "tags:", "- vision-language", "---"]
    sources = [f"- **{name}**: {text}" for name, text in data.items()] or ["Not recorded."]
    code = usage or f'import triptych\n\nmodel = triptych.load("{CARD_FOLDER}")'
    return "\n".join(
        [
            *front,
            "",
            f"# {title}",
            "",
            summary,
            "",
            "## Use",
            "",
            "```python",
            code,
            "```",
            "",
            "## Data",
            "",
            *sources,
            "",
            "## Metrics",
            "",
            *_metric_lines(metrics, evaluation),
            *_loss_lines(losses or {}),
            "",
            "## Recipe",
            "",
            f"Code: commit `{commit}`." if commit else "Code: the commit is not known.",
            "",
            "```yaml",
            recipe.rstrip("\n"),
            "```",
            "",
        ]
    )


def _loss_lines(losses: Mapping[str, float]) -> list[str]:
    """Return a table of training losses, or nothing."""
    if not losses:
        return []
    rows = [f"| {name} | {value:.4f} |" for name, value in losses.items()]
    text = "Last losses that training logged, on training data:"
    return ["", text, "", "| loss | value |", "|---|---|", *rows]


def _metric_lines(metrics: Sequence[MetricValue], evaluation: str | None) -> list[str]:
    """Return a table with a row a metric; without any, how to measure some."""
    if not metrics:
        nothing = "No held-out data was scored."
        if evaluation is None:
            return [nothing]
        command = f"triptych eval {CARD_FOLDER} --task {evaluation} --data TEST_DATA"
        return [f"{nothing} Score some with `{command}`."]
    rows = [
        f"| {metric.name} | {metric.value:.4f} | {metric.low:.4f} to {metric.high:.4f} "
        f"| {metric.num_items} | {metric.protocol.replace('|', '/')} |"
        for metric in metrics
    ]
    return ["| metric | value | 95 % interval | items | protocol |", "|---|---|---|---|---|", *rows]
