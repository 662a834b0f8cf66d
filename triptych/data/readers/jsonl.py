"""The manifest: JSON Lines, or a JSON list, of entries `{"image": "a.jpg", "caption": "..."}`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.data.entries import FIELDS, IMAGE_FIELDS, foreign_field, misspelt_field, parse_entry
from triptych.data.lines import load_json, parse_json_line, read_lines
from triptych.data.records import ImageSource
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, RecordList, check_split

Entry = tuple[str, str, dict[str, Any]]  # id, place, fields


def read_jsonl(source: DataSourceConfig) -> RecordList:
    """Read a manifest; a `.json` file is read as one list of entries.

    Raises:
        DataError: The file cannot be read, a field of its first entry is misspelt, or the split
            does not exist.
    """
    return records_of_entries(source, *read_objects(Path(source.path)))


def read_objects(path: Path) -> tuple[list[Entry], list[Skipped]]:
    """Return each JSON object with its id and place, and what is no object.

    Raises:
        DataError: The file cannot be read, or is a `.json` file without a list.
    """
    skipped: list[Skipped] = []
    values: list[tuple[str, str, Any]] = []
    if path.suffix.lower() == ".json":
        listed = load_json(path)
        if not isinstance(listed, list):
            raise DataError(f"{path}: expected a list of entries, found {type(listed).__name__}")
        values = [(str(i), f"{path}: [{i}]", value) for i, value in enumerate(listed)]
    else:
        for number, line in read_lines(path):
            if isinstance(line, Skipped):
                skipped.append(line)
                continue
            where = f"{path}:{number}"
            try:
                values.append((str(number), where, parse_json_line(line)))
            except ValueError as error:
                skipped.append(Skipped(SkipKind.BAD_JSON, where, f"not valid JSON: {error}"))
    entries: list[Entry] = []
    for own_id, where, value in values:
        if isinstance(value, dict):
            entries.append((own_id, where, value))
        else:
            message = f"expected an object {{...}}, found {type(value).__name__}"
            skipped.append(Skipped(SkipKind.BAD_RECORD, where, message))
    return entries, skipped


def records_of_entries(
    source: DataSourceConfig, entries: list[Entry], skipped: list[Skipped]
) -> RecordList:
    """Return the records of manifest entries from whatever file.

    Raises:
        DataError: A field of the first entry is misspelt, or the split does not exist.
    """
    locate = locator(source.root)
    if entries:
        _check_names(entries[0], locate)
    splits = (str(fields["split"]) for _, _, fields in entries if "split" in fields)
    parts = check_split(source.split, splits, source.path)
    found = RecordList(skipped=skipped, parts=parts)
    alone = all(IMAGE_FIELDS.issuperset(fields) for _, _, fields in entries)
    for own_id, where, fields in entries:
        if source.split is None or str(fields.get("split")) == source.split:
            found.add(
                parse_entry(
                    fields,
                    record_id=own_id,
                    where=where,
                    locate=locate,
                    images_alone=alone,
                )
            )
    return found


def _check_names(entry: Entry, locate: Callable[[str], ImageSource]) -> None:
    """Stop at once where the first entry shows that the fields are named otherwise."""
    own_id, where, fields = entry
    clue = misspelt_field(list(fields))
    if clue is None:
        first = next(parse_entry(fields, record_id=own_id, where=where, locate=locate))
        if isinstance(first, Skipped) and first.kind is SkipKind.MISSING_FIELD:
            clue = foreign_field(list(fields)) and first.message
    if clue is not None:
        known = ", ".join(FIELDS)
        raise DataError(f"{where}: {clue} (the fields that are read: {known})")


def locator(root: Path) -> Callable[[str], ImageSource]:
    """Return what turns a written path into a source: relative paths start from `root`."""
    return lambda name: ImageSource(str(root / name))
