"""Files of predictions in our form: JSON Lines that say what made them, and that can be resumed.

The first line is the header; each other line is one sample of the data, in its order:

    {"triptych": "predictions", "version": 1, "task": "vqa", "model": ..., "num_samples": 3, ...}
    {"index": 0, "id": "262148000", "image_id": "262148", "text": "down"}
    {"index": 1, "id": "262148001", "image_id": "262148", "skipped": true}
    {"index": 2, "id": "262148002", "image_id": "262148", "text": "2"}

A line is `skipped` where the sample could not be read. Other parts are "box_xyxy" (x0, y0, x1, y1
in pixels of the original image), "label", "value", "probabilities" (of the header's
`task_config.labels`), "ranked" (pairs of an id and a score), and whatever else the task scores.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.core.errors import ConfigError, DataError
from triptych.core.files import make_folder, refusal, whole_file_for_one, writing
from triptych.core.outputs import Predictions
from triptych.core.reading import BAD_CONTENT, open_regular, reading
from triptych.data.records import Record

Array = NDArray[Any]

MARK = {"triptych": "predictions", "version": 1}
MAX_HEADER_BYTES = 2**24
LONGEST_LIST = 64
"""Numbers of a sample that are written as a list; larger arrays are compressed."""

OWN_NAMES = frozenset({"index", "id", "image_id", "skipped"})

TRUTH_FIELDS = frozenset(
    {"answers", "label", "box", "mask", "domain", "question_type", "answer_type", "codes"}
)
"""Fields of a record that no prediction depends on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What made a file of predictions.

    Attributes:
        task: The evaluation, such as "vqa".
        model: Where the model was read from.
        model_hash: Of its files.
        task_config: Settings of the task that predicted, and its `kind`.
        settings: How it was asked.
        data: Where the data was read from.
        data_hash: Of what was read of it, the truth apart.
        num_samples: Lines of a finished file.
        batch_size: Samples of a batch.
        protocol: How the predictions were made, in one sentence.
        commit: Commit of the code; None if it is not known.
    """

    task: str
    model: str
    model_hash: str
    task_config: dict[str, Any]
    settings: dict[str, Any]
    data: str
    data_hash: str
    num_samples: int
    batch_size: int
    protocol: str
    commit: str | None = None

    def line(self) -> str:
        """Return the first line of a file."""
        return json.dumps(MARK | asdict(self), ensure_ascii=False) + "\n"

    def key(self) -> str:
        """Return all that decides the predictions, as a text."""
        return json.dumps(asdict(self) | {"commit": None, "model": "", "data": ""})

    def differences(self, other: Header) -> list[str]:
        """Return in words what another run has otherwise, and must not."""
        found = []
        for name, words in (("task", "task"), ("model_hash", "model"), ("data_hash", "data")):
            if getattr(self, name) != getattr(other, name):
                shown = name.removesuffix("_hash")
                mine, others = (getattr(side, shown) for side in (self, other))
                same = " of the same name, which has changed" if mine == others else ""
                found.append(f"the {words} ({mine!r} in the file, now {others!r}{same})")
        for name in ("settings", "task_config"):
            mine, others = (getattr(side, name) for side in (self, other))
            found += [
                f"{key} ({mine.get(key)!r} in the file, now {others.get(key)!r})"
                for key in dict.fromkeys([*mine, *others])
                if mine.get(key) != others.get(key)
            ]
        if not found and self.num_samples != other.num_samples:
            found.append(f"the samples ({self.num_samples} in the file, now {other.num_samples})")
        return found


@dataclass(slots=True)
class PredictionFile:
    """A file that predictions are added to.

    Attributes:
        path: Where it lies.
        header: What makes it.
        rows_before: What an earlier run left, whole batches alone.
        num_rows: Rows on disk now.
    """

    path: Path
    header: Header
    file: IO[bytes]
    rows_before: list[dict[str, Any]] = field(default_factory=list)
    num_rows: int = 0

    @property
    def is_finished(self) -> bool:
        """Whether every sample has its line."""
        return self.num_rows >= self.header.num_samples

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of one batch; a kill leaves the whole batches before it.

        Raises:
            DataError: They cannot be written; the batches before them stay.
        """
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        try:
            _write_all(self.file, "".join(lines).encode("utf-8", "surrogatepass"))
        except OSError as error:
            way = "give the command again: it goes on with what was written before, which stays"
            raise DataError(refusal(str(self.path), error, way)) from error
        self.num_rows += len(rows)


def _write_all(file: IO[bytes], data: bytes) -> None:
    """Write bytes past any buffer, so that none is left to fail later."""
    view = memoryview(data)
    while view:
        view = view[os.write(file.fileno(), view) :]


@contextmanager
def open_predictions(path: Path, header: Header, *, overwrite: bool) -> Iterator[PredictionFile]:
    """Open a file to add predictions to, new or where an earlier run stopped.

    A file without a single row is removed at the end, so that an error leaves nothing behind.

    Raises:
        ConfigError: It holds other predictions, or another process writes to it.
        DataError: It is damaged.
    """
    make_folder(path.parent)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name a file, such as {path / 'predictions.jsonl'}")
    found = PredictionFile(path, header, whole_file_for_one(path))
    try:
        with found.file, writing(str(path), path, only_full=True):
            if path.stat().st_size == 0 or (overwrite and _is_ours(path)):
                found.file.truncate(0)
                found.file.seek(0)
                _write_all(found.file, header.line().encode("utf-8", "surrogatepass"))
            else:
                _go_on(found)
            yield found
    finally:
        if found.num_rows == 0 and not found.rows_before and _is_ours(path, empty=True):
            path.unlink(missing_ok=True)


def _is_ours(path: Path, *, empty: bool = False) -> bool:
    """Return whether a file has our header, and nothing but it if asked."""
    with reading(path), open_regular(path) as file:
        first = file.readline(MAX_HEADER_BYTES)
        rest = file.read(1) if empty else b""
    return first.startswith(b'{"triptych": "predictions"') and not rest


def _go_on(found: PredictionFile) -> None:
    """Check the header of an earlier run, and cut what it did not finish."""
    if not _is_ours(found.path):
        raise ConfigError(
            f"{found.path} is no file of predictions of ours, and is left as it is: choose another "
            "name for --out"
        )
    before, rows, size = _read(found.path)
    differences = before.differences(found.header)
    if differences:
        raise ConfigError(
            f"{found.path} holds predictions that were made otherwise: {'; '.join(differences)}. "
            "Choose another name for --out, or replace the file with --overwrite"
        )
    if len(rows) < before.num_samples:
        whole = len(rows) - len(rows) % before.batch_size
        size -= sum(length for _, length in rows[whole:])
        rows = rows[:whole]
        found.file.truncate(size)
    found.file.seek(0, os.SEEK_END)
    found.header = before
    found.rows_before = [row for row, _ in rows]
    found.num_rows = len(rows)


def read_predictions(path: Path) -> tuple[Header, list[dict[str, Any]]]:
    """Read a file of ours.

    Raises:
        DataError: It is none, or is damaged; the message names the line.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if not _is_ours(path):
        raise DataError(f"{path} is no file of predictions of ours")
    header, rows, _ = _read(path)
    return header, [row for row, _ in rows]


def is_ours(path: Path) -> bool:
    """Return whether a file that exists has our header."""
    return path.is_file() and _is_ours(path)


def _read(path: Path) -> tuple[Header, list[tuple[dict[str, Any], int]], int]:
    """Return the header, the rows with their lengths in bytes, and the bytes of all of them.

    A last line without an end is what a kill left, and is passed over.
    """
    rows: list[tuple[dict[str, Any], int]] = []
    header: Header | None = None
    size = 0
    with reading(path), open_regular(path) as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                value = json.loads(line.decode("utf-8", "surrogatepass"))
                if number == 1:
                    header = _header(value)
                elif value["index"] != len(rows) or not isinstance(value["id"], str):
                    raise ValueError(f"is not that of sample {len(rows)}")
                else:
                    rows.append((value, len(line)))
            except BAD_CONTENT as error:
                raise DataError(f"{path}:{number}: damaged: {error}; predict it again") from error
            size += len(line)
    if header is None:
        raise DataError(f"{path}: its first line is cut off; remove it and predict again")
    if len(rows) > header.num_samples:
        raise DataError(f"{path}: has {len(rows)} lines for {header.num_samples} samples")
    return header, rows, size


def _header(plain: dict[str, Any]) -> Header:
    if plain.get("version") != MARK["version"]:
        raise ValueError(f"version {plain.get('version')!r} is not known here")
    names = {field.name for field in fields(Header)}
    return Header(**{name: value for name, value in plain.items() if name in names})


def rows_of(
    predictions: Predictions, records: Sequence[Record], kept: tuple[str, ...] | None
) -> list[dict[str, Any]]:
    """Return the predictions of a batch as lines of a file.

    Args:
        predictions: Their `index` are places in `records`.
        records: All records that are predicted.
        kept: Which parts; None keeps all.
    """
    parts: dict[str, Any] = {}
    if predictions.texts is not None:
        parts["text"] = predictions.texts
    if predictions.boxes_xyxy is not None:
        parts["box_xyxy"] = predictions.boxes_xyxy.detach().cpu()
    parts |= {
        name: values.detach().cpu() if isinstance(values, Tensor) else values
        for name, values in predictions.scores.items()
    }
    reserved = OWN_NAMES & parts.keys()
    assert not reserved, f"a task may not call a score {reserved}"
    chosen = {name: values for name, values in parts.items() if kept is None or name in kept}
    return [
        name_of(records[position], position)
        | {name: _plain(values[row]) for name, values in chosen.items()}
        for row, position in enumerate(predictions.index)
    ]


def name_of(record: Record, position: int) -> dict[str, Any]:
    """Return what a line calls its sample."""
    named = {"index": int(position), "id": record.record_id}
    return named if record.image_id is None else named | {"image_id": record.image_id}


def _plain(value: Any) -> Any:
    """Return one sample's part as JSON holds it, without a loss."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16):
            value = value.float()
        array = np.asarray(value)
        if array.size <= LONGEST_LIST and array.ndim < 2:
            return array.tolist()
        packed = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes())).decode()
        kind = "tensor" if isinstance(value, Tensor) else "numpy"
        shape = list(array.shape)
        return {"array": packed, "dtype": str(array.dtype), "shape": shape, "kind": kind}
    return value


def predictions_of(rows: Sequence[Mapping[str, Any]], positions: Sequence[int]) -> Predictions:
    """Return lines of a file as predictions of samples at other places; the inverse of `rows_of`.

    Raises:
        DataError: A line lacks a part that others have.
    """
    seen = dict.fromkeys(name for row in rows for name in row)
    names = [name for name in seen if name not in OWN_NAMES]
    for row in rows:
        lacking = [name for name in names if name not in row]
        if lacking:
            raise DataError(f"the prediction of {row['id']!r} has no {lacking[0]!r}, others do")
    parts: dict[str, Any] = {name: _joined([row[name] for row in rows]) for name in names}
    return Predictions(
        index=list(positions), texts=parts.pop("text", None), scores=parts,
        boxes_xyxy=parts.pop("box_xyxy", None),
    )  # fmt: skip


def _joined(values: list[Any]) -> Any:
    """Return numbers and arrays of the same shape as one tensor, other values as they are."""
    if all(isinstance(value, dict) and "array" in value for value in values):
        arrays = [_unpacked(value) for value in values]
        if any(value["kind"] == "numpy" for value in values):
            return arrays
        tensors = [torch.from_numpy(array) for array in arrays]
        return torch.stack(tensors) if len({t.shape for t in tensors}) == 1 else tensors
    first = values[0] if values else None
    if isinstance(first, list):
        is_even = all(isinstance(v, list) and len(v) == len(first) for v in values)
        numbers = [number for value in values if isinstance(value, list) for number in value]
        if not (is_even and _are_numbers(numbers)):
            return values
    elif not _are_numbers(values):
        return values
    table = np.array(values)
    single = table.astype(np.float32)
    exact = np.array_equal(single.astype(np.float64), table, equal_nan=True)
    return torch.from_numpy(single if table.dtype == np.float64 and exact else table)


def _are_numbers(values: Sequence[Any]) -> bool:
    """Return whether all are whole numbers, or all are floats."""
    kinds = {type(value) for value in values}
    return kinds in ({int}, {float})


def _unpacked(value: Mapping[str, Any]) -> Array:
    raw = zlib.decompress(base64.b64decode(value["array"]))
    return np.frombuffer(raw, dtype=np.dtype(value["dtype"])).reshape(value["shape"]).copy()


def hash_of_records(records: Iterable[Record], truth: str) -> str:
    """Return a hash of all that a prediction depends on, in the order of the records.

    Args:
        records: What is predicted.
        truth: The field that holds the truth; empty where the model reads all of them.
    """
    left_out = TRUTH_FIELDS | {truth}
    names = [name for name in Record.__slots__ if name not in left_out]
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        values = [(name, getattr(record, name)) for name in names]
        present = [(name, value) for name, value in values if value not in (None, ())]
        digest.update(repr(present).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
