"""NLVR2: statements that are true or false of two images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.data.entries import EntryError, parse_text, parse_truth
from triptych.data.readers.jsonl import read_objects
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, RecordList, check_split, choose_layout


def is_nlvr2(entry: Mapping[str, Any]) -> bool:
    """Return whether a line's object is an NLVR2 example."""
    return {"identifier", "sentence"} <= entry.keys()


def read_nlvr2(source: DataSourceConfig) -> RecordList:
    """Read statements; `dev-850-0-1` is about `dev-850-0-img0.png` and `dev-850-0-img1.png`.

    Images are looked for in `image_root`, in its folder named after the first part of the
    identifier (`dev`), and in `images/train/<directory>`.

    Raises:
        DataError: The file cannot be read, no line is of NLVR2, or no image is found.
    """
    check_split(source.split, (), source.path)
    entries, skipped = read_objects(Path(source.path))
    found = RecordList(skipped=skipped)
    usable = []
    for _, where, fields in entries:
        identifier = fields.get("identifier")
        if isinstance(identifier, str) and len(identifier.split("-")) > 1:
            usable.append((where, fields))
        else:
            message = f"identifier {identifier!r} is not like 'dev-850-0-1'"
            found.skipped.append(Skipped(SkipKind.MISSING_FIELD, where, message))
    if not usable:
        raise DataError(f"{source.path}: no line has an NLVR2 'identifier'")
    layout = choose_layout(source.root, LAYOUTS, [fields for _, fields in usable], "image pairs")
    for where, fields in usable:
        found.add([_record(fields, where, source.root, layout)])
    return found


def _record(
    fields: Mapping[str, Any], where: str, root: Path, layout: Callable[[Any], str]
) -> Record | Skipped:
    first = layout(fields)
    second = first.removesuffix("img0.png") + "img1.png"
    try:
        label = fields.get("label")
        return Record(
            record_id=fields["identifier"],
            images=(ImageSource(str(root / first)), ImageSource(str(root / second))),
            image_id=_pair(fields),
            statement=parse_text("sentence", fields.get("sentence")),
            label=None if label is None else parse_truth(label),
        )
    except EntryError as error:
        return Skipped(error.kind, where, str(error))


def _pair(fields: Mapping[str, Any]) -> str:
    return str(fields["identifier"]).rsplit("-", 1)[0]


def _part(fields: Mapping[str, Any]) -> str:
    return str(fields["identifier"]).split("-", 1)[0]


LAYOUTS: tuple[Callable[[Mapping[str, Any]], str], ...] = (
    lambda fields: f"{_pair(fields)}-img0.png",
    lambda fields: f"{_part(fields)}/{_pair(fields)}-img0.png",
    lambda fields: f"images/{_pair(fields)}-img0.png",
    lambda fields: f"images/train/{fields.get('directory', '')}/{_pair(fields)}-img0.png",
)
