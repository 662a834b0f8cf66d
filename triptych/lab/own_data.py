"""Own images with captions in a study: a tenth of the images is held out for the scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from triptych.core.errors import ConfigError, DataError
from triptych.core.files import write_atomic
from triptych.data.doctor.clean import record_entry
from triptych.data.held_out import hold_out
from triptych.data.manifest import read_records
from triptych.data.records import Record
from triptych.data.source import DataSourceConfig
from triptych.lab.plan import Settings

SHARE = 0.1
"""Of the images, where no held-out data is named; a hash of an image's name chooses them."""

OWN = "own"


def with_held_out(settings: Settings, folder: Path) -> Settings:
    """Return settings whose own data is in two parts, training and held out.

    The parts are written as manifests below the folder of the study.

    Args:
        settings: Of the study; without own data, or with held-out data, they stay as they are.
        folder: Of the study.

    Raises:
        ConfigError: The data has changed since the study began.
        DataError: The images lie in shards or tables, or there are too few.
    """
    if not settings.data or settings.held_out:
        return settings
    records = [read_records(source).records for source in settings.data]
    parts = hold_out(records, SHARE, ", ".join(source.path for source in settings.data))
    own = folder.resolve() / "data" / OWN
    train = []
    for number, (part, source) in enumerate(zip(parts, settings.data, strict=True)):
        path = own / f"train_{number}.jsonl"
        _write(path, part.train)
        read = DataSourceConfig(path=str(path), index=source.index, name=source.name)
        train.append(replace(read, kind=source.kind, ratio=source.ratio))
    held = own / "held_out.jsonl"
    _write(held, [record for part in parts for record in part.held_out])
    return replace(settings, data=tuple(train), held_out=(DataSourceConfig(path=str(held)),))


def _write(path: Path, records: Sequence[Record]) -> None:
    """Write a manifest, unless it is there."""
    try:
        entries = [record_entry(record, path.parent) for record in records]
    except DataError as error:
        raise DataError(
            "images in shards or tables cannot be divided: name held-out data with --data.val"
        ) from error
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"the data of this study has changed since it began ({path} would differ): choose "
            "another folder with --out"
        )
    write_atomic(path, text)
