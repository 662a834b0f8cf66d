"""Hateful Memes (Kiela et al. 2020): images with the text on them, hateful or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.data.entries import EntryError, parse_text, parse_truth
from triptych.data.readers.jsonl import read_objects
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, RecordList, check_split


def is_hateful_memes(entry: Mapping[str, Any]) -> bool:
    """Return whether a line's object is of Hateful Memes."""
    return {"id", "img", "text"} <= entry.keys()


def read_hateful_memes(source: DataSourceConfig) -> RecordList:
    """Read `{"id": 42953, "img": "img/42953.png", "label": 0, "text": "..."}` lines.

    The label is 1 for hateful and 0 for not; lines of a test file have none.

    Raises:
        DataError: The file cannot be read, or no line is of Hateful Memes.
    """
    check_split(source.split, (), source.path)
    entries, skipped = read_objects(Path(source.path))
    if entries and not any(is_hateful_memes(fields) for _, _, fields in entries):
        raise DataError(f"{source.path}: no line has 'id', 'img' and 'text', as Hateful Memes has")
    found = RecordList(skipped=skipped)
    for number, where, fields in entries:
        found.add([_record(fields, number, where, source.root)])
    return found


def _record(fields: Mapping[str, Any], number: str, where: str, root: Path) -> Record | Skipped:
    label = fields.get("label")
    try:
        image = parse_text("img", fields.get("img"))
        return Record(
            record_id=str(fields.get("id", number)),
            image=ImageSource(str(root / image)),
            image_id=image,
            text=parse_text("text", fields.get("text")),
            label=None if label is None else int(parse_truth(label)),
        )
    except EntryError as error:
        kind = SkipKind.MISSING_FIELD if error.kind is SkipKind.BAD_RECORD else error.kind
        return Skipped(kind, where, str(error))
