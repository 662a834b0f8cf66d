"""A manifest without what a check found, and a list of what it excludes."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.core.files import write_atomic
from triptych.data.records import ImageSource, Record
from triptych.data.samples import sample_entry

EXCLUDED = ".excluded.jsonl"


def write_clean(
    path: Path, records: Sequence[Record], excluded: Mapping[int, Collection[str]]
) -> int:
    """Write the records that are kept as a manifest, and the others as PATH.excluded.jsonl.

    Paths in the manifest are relative to its folder where the images lie below it.

    Args:
        path: The manifest, in JSON Lines.
        records: All records.
        excluded: Why a record is excluded, by its number.

    Returns:
        How many records are kept.

    Raises:
        DataError: An image lies inside a shard or a table, which a manifest cannot name; or a
            file cannot be written.
    """
    folder = path.absolute().parent
    kept: list[str] = []
    lost: list[str] = []
    for row, record in enumerate(records):
        why = excluded.get(row)
        if why is None:
            kept.append(json.dumps(record_entry(record, folder), ensure_ascii=False))
        else:
            shown = [*map(str, record.all_images()), record.video]
            entry = {"id": record.record_id, "image": shown[0], "caption": record.caption}
            lost.append(json.dumps(entry | {"why": sorted(why)}, ensure_ascii=False))
    write_atomic(path.with_name(path.name + EXCLUDED), "".join(line + "\n" for line in lost))
    write_atomic(path, "".join(line + "\n" for line in kept))
    return len(kept)


def record_entry(record: Record, folder: Path) -> dict[str, Any]:
    """Return a record as a line of a manifest in a folder.

    Raises:
        DataError: Its image lies inside a shard or a table.
    """
    entry: dict[str, Any] = {}
    if record.image is not None:
        entry["image"] = _name(record.image, folder)
    if record.images:
        entry["images"] = [_name(image, folder) for image in record.images]
    if record.video is not None:
        entry["video"] = _relative(record.video, folder)
    if record.mask is not None:
        entry["mask"] = _name(record.mask, folder)
    for name in ("statement", "text"):
        if getattr(record, name) is not None:
            entry[name] = getattr(record, name)
    return entry | dict(sample_entry([record]))


def _name(image: ImageSource, folder: Path) -> str:
    if image.offset is not None:
        raise DataError(
            f"{image} lies inside another file, which a manifest cannot name: give --out for the "
            "report alone, or check the images before they are written into shards or tables"
        )
    return _relative(image.path, folder)


def _relative(path: str, folder: Path) -> str:
    if "://" in path:
        return path
    whole = str(Path(path).absolute())
    return os.path.relpath(whole, folder) if whole.startswith(f"{folder}{os.sep}") else whole
