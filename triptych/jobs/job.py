"""A batch job on disk: its parts, and what must stay the same for it to go on.

A job's folder holds `_job.json`, which says what the job is, and `part-000000.parquet` and so on:
`part_rows` inputs each. A part appears as a whole or not at all, so that what is left to do is what
has no file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from triptych import __version__
from triptych.checkpoint.model_folder import hash_model_folder
from triptych.core.config import MAX_BATCH_SIZE, MAX_WORKERS, check, check_range, to_dict
from triptych.core.errors import ConfigError, nearest
from triptych.core.files import has_entries, remove_partials, write_atomic, write_json
from triptych.core.reading import read_json
from triptych.core.terminal import readable
from triptych.data.images import max_image_pixels
from triptych.data.manifest import source_facts
from triptych.data.source import DataSourceConfig
from triptych.jobs.inputs import Input
from triptych.serving.verb import Answer, Verb
from triptych.serving.verbs import VERBS

ABOUT = "_job.json"
"""Named so that readers of a folder of parquet leave it out."""

SHORT_NAMES = {"embed": "embed_image"}

SHARES = pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """What is asked about which data, by which model, and where the answers go.

    Attributes:
        verb: A row of the table of verbs; "embed" is short for "embed_image".
        model: The model folder.
        source: The dataset.
        out: The folder of the parts.
        options: Options of the verb, as JSON values.
        limit: Only so many inputs, from the start.
        part_rows: Inputs in a part: what a killed job does again at most, in each process.
        batch_size: Inputs that are asked together.
        num_threads: Threads that read images ahead; 0 reads them in turn.
        device: Where the model computes: auto, cpu or cuda.
        precision: Of the forward pass: auto, fp32 or bf16.
        max_image_pixels: Pixels that an image may have, in every process.
    """

    verb: str
    model: Path
    source: DataSourceConfig
    out: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    part_rows: int = 1024
    batch_size: int = 32
    num_threads: int = 2
    device: str = "auto"
    precision: str = "auto"
    max_image_pixels: int | None = field(default_factory=max_image_pixels)

    def __post_init__(self) -> None:
        """Reject a verb that is none, options that it lacks, and sizes out of range."""
        name = SHORT_NAMES.get(self.verb, self.verb)
        if name not in VERBS:
            known = [*VERBS, *SHORT_NAMES]
            clue = nearest(self.verb, known) or f": a batch job can {', '.join(known)}"
            raise ConfigError(f"there is no verb {self.verb!r}{clue}")
        object.__setattr__(self, "verb", name)
        self.read_options()
        check(self.limit is None or self.limit >= 1, "limit", self.limit, "be at least 1")
        check_range("part_rows", self.part_rows, 1, 1_000_000)
        check_range("batch_size", self.batch_size, 1, MAX_BATCH_SIZE)
        check_range("num_workers", self.num_threads, 0, MAX_WORKERS)

    @property
    def asked(self) -> Verb:
        """The row of the table of verbs."""
        return VERBS[self.verb]

    def read_options(self) -> Any:
        """Return the options of the verb.

        Raises:
            ConfigError: One is unknown, of another type, or out of range.
        """
        return self.asked.read_options(self.options)

    def path(self, part: int) -> Path:
        """Return where a part lies."""
        return self.out / f"part-{part:06d}.parquet"

    def rows(self, part: int, num_rows: int) -> range:
        """Return the inputs of a part, of so many in all."""
        start = part * self.part_rows
        return range(start, min(start + self.part_rows, num_rows))

    def todo(self, num_rows: int) -> list[int]:
        """Return the parts that are not there."""
        num_parts = -(-num_rows // self.part_rows)
        there = {path.name for path in self.out.glob("part-*.parquet")}
        return [part for part in range(num_parts) if self.path(part).name not in there]

    def identity(self, model: Path, num_rows: int) -> dict[str, Any]:
        """Return what decides the rows, as JSON values; a job goes on only where this is equal.

        Args:
            model: Where the model was read from: of a hub id, its folder here.
            num_rows: Inputs of the job.
        """
        return {
            "triptych": __version__,
            "verb": self.verb,
            "options": to_dict(self.read_options()),
            "model": str(self.model),
            "model_hash": hash_model_folder(model),
            "precision": self.precision,
            "source": to_dict(self.source),
            "files": source_facts(self.source),
            "max_image_pixels": self.max_image_pixels,
            "limit": self.limit,
            "num_rows": num_rows,
            "part_rows": self.part_rows,
            "batch_size": self.batch_size,
        }

    def claim(self, model: Path, num_rows: int) -> None:
        """Write what the job is, or check that the folder's job is this one.

        Args:
            model: Where the model was read from.
            num_rows: Inputs of the job.

        Raises:
            ConfigError: The folder holds another job, or other files.
        """
        about = self.out / ABOUT
        now = self.identity(model, num_rows)
        if about.is_file():
            changed = changes(read_json(about), now)
            if changed:
                raise ConfigError(
                    f"{self.out} holds the rows of another job: {'; '.join(changed)}. Choose "
                    "another folder, or delete this one to begin again"
                )
        elif has_entries(self.out):
            raise ConfigError(f"{self.out} holds other files and no job: choose another folder")
        else:
            write_json(about, now)
        remove_partials(self.out)

    def write_part(self, part: int, inputs: Sequence[Input], answers: Sequence[Answer]) -> None:
        """Write the rows of a part; they appear together."""
        buffer = io.BytesIO()
        pq.write_table(table_of(self.asked, inputs, answers), buffer, compression="zstd")
        write_atomic(self.path(part), buffer.getvalue())


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what is different in the identities of two jobs, in words."""
    found = []
    same_verb = before.get("verb") == now["verb"]  # another one has other options
    for name in ("options", "source") if same_verb else ("source",):
        old, new = before.get(name) or {}, now[name]
        found += [
            f"{name.removesuffix('s')} {key} was {old.get(key)!r} and is {new.get(key)!r}"
            for key in dict.fromkeys((*old, *new))
            if _plain(old.get(key)) != _plain(new.get(key))
        ]
    found += _changed_files(before.get("files") or [], now["files"])
    if before.get("model_hash") != now["model_hash"]:
        found.append(f"the model {before.get('model')} was another one, or was trained further")
    plain = ("verb", "precision", "max_image_pixels", "limit", "part_rows", "batch_size")
    for name in (*plain, "num_rows"):
        if before.get(name) != now[name]:
            found.append(f"{name} was {before.get(name)!r} and is {now[name]!r}")
    return found


def _changed_files(before: Sequence[Any], now: Sequence[Any]) -> list[str]:
    old, new = ({path: list(facts) for path, *facts in files} for files in (before, now))
    found = [f"{path} is new" for path in new if path not in old]
    found += [f"{path} is gone" for path in old if path not in new]
    found += [f"{path} was changed" for path in new if path in old and old[path] != new[path]]
    return found[:3] + ([f"and {len(found) - 3} more files"] if len(found) > 3 else [])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def table_of(verb: Verb, inputs: Sequence[Input], answers: Sequence[Answer]) -> pa.Table:
    """Return rows as a table.

    Args:
        verb: What was asked.
        inputs: One a row.
        answers: One a row; {"error": why} where there is none.
    """
    columns: dict[str, Any] = {
        "row": pa.array([one.row for one in inputs], pa.int64()),
        "id": pa.array([readable(one.record_id) for one in inputs], pa.string()),
    }
    if verb.num_images == 1:
        paths = [readable(one.images[0]) if one.images else None for one in inputs]
        columns["image"] = pa.array(paths, pa.string())
    elif verb.num_images == 2:
        columns["images"] = pa.array(
            [list(map(readable, one.images)) for one in inputs], pa.list_(pa.string())
        )
    for name, kind in verb.gives.items():
        values = [_cell(name, answer.get(name)) for answer in answers]
        columns[name] = pa.array(values, _arrow_type(name, kind, exact=verb.digits is None))
    errors = [answer.get("error") for answer in answers]
    columns["error"] = pa.array([error and readable(error) for error in errors], pa.string())
    return pa.table(columns)


def _arrow_type(name: str, kind: Any, *, exact: bool) -> pa.DataType:
    """Return the type of a column of answers."""
    if name == "mask_png":
        return pa.binary()
    words = str(kind)
    if "dict" in words:
        return SHARES
    if "list" in words:  # exact ones are float32 of the model, boxes decimals
        return pa.list_(pa.float32() if exact else pa.float64())
    return pa.float64() if "float" in words else pa.string()


def _cell(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return [{"name": key, "value": share} for key, share in value.items()]
    return base64.b64decode(value) if name == "mask_png" and value is not None else value


def count_rows(out: Path) -> tuple[int, int]:
    """Return the rows of a job's parts, and how many of them have an error."""
    rows, errors = 0, 0
    for path in out.glob("part-*.parquet"):
        with pq.ParquetFile(path) as file:
            rows += file.metadata.num_rows
            last = file.metadata.num_columns - 1
            for group in range(file.metadata.num_row_groups):
                part = file.metadata.row_group(group)
                errors += part.num_rows - part.column(last).statistics.null_count
    return rows, errors
