"""The user's own manifest: JSON Lines, a JSON list, or a CSV table with the same fields.

An entry is `{"image": "a.jpg", "caption": "..."}`; tabs or semicolons may separate a table's cells.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.core.reading import UTF16_BOMS, open_text, read_json, reading
from triptych.data.entries import (
    FIELDS,
    IMAGE_FIELDS,
    SUBJECTS,
    foreign_field,
    misspelt_field,
    parse_entry,
)
from triptych.data.lines import bounded_lines, is_json_lines, parse_json_line, read_lines
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, Parts, check_split
from triptych.data.spec import Expected, Format, Layout
from triptych.data.storage import is_url

_PLAIN = re.compile(r"(?:[^/.:][^/:]*/)*[^/.:][^/:]*")
"""A relative path that pathlib would leave as it is."""

Entry = tuple[str, str, dict[str, Any]]  # id, where, fields


def read_jsonl(source: DataSourceConfig) -> Iterator[Record | Skipped | Parts]:
    """Read a manifest; a `.json` file is read as one list of entries.

    Raises:
        DataError: The file cannot be read, a field of its first entry is misspelt, or the split
            does not exist.
    """
    return records_of_entries(source, lambda: iterate_objects(Path(source.path)))


def read_objects(path: Path) -> tuple[list[Entry], list[Skipped]]:
    """Return each JSON object with its id and where it stands, and what is no object.

    Raises:
        DataError: The file cannot be read, or is a `.json` file without a list.
    """
    entries: list[Entry] = []
    skipped: list[Skipped] = []
    for entry in iterate_objects(path):
        if isinstance(entry, Skipped):
            skipped.append(entry)
        else:
            entries.append(entry)
    return entries, skipped


def iterate_objects(path: Path) -> Iterator[Entry | Skipped]:
    """Yield each JSON object with its id and where it stands, or why a line is none.

    Raises:
        DataError: The file cannot be read, or is a `.json` file without a list.
    """
    for own_id, where, value in _values(path):
        if isinstance(value, (dict, Skipped)):
            yield value if isinstance(value, Skipped) else (own_id, where, value)
        else:
            message = f"expected an object {{...}}, found {type(value).__name__}"
            yield Skipped(SkipKind.BAD_RECORD, where, message)


def _values(path: Path) -> Iterator[tuple[str, str, Any]]:
    if path.suffix.lower() == ".json" and not is_json_lines(path):
        listed = read_json(path)
        if not isinstance(listed, list):
            raise DataError(f"{path}: expected a list of entries, found {type(listed).__name__}")
        yield from ((str(i), f"{path}: [{i}]", value) for i, value in enumerate(listed))
        return
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        value: Any = line
        if isinstance(line, str):
            try:
                value = parse_json_line(line)
            except ValueError as error:
                value = Skipped(SkipKind.BAD_JSON, where, f"not valid JSON: {error}")
        yield str(number), where, value


def records_of_entries(
    source: DataSourceConfig, entries: Callable[[], Iterable[Entry | Skipped]]
) -> Iterator[Record | Skipped | Parts]:
    """Yield the records of manifest entries from whatever file.

    Args:
        source: What is read.
        entries: Begins to read them; called twice.

    Raises:
        DataError: A field of the first entry is misspelt, or the split does not exist.
    """
    locate = locator(source.root)
    # Ends at the first entry with more than an image: almost always the first of all.
    images_only = all(
        IMAGE_FIELDS.issuperset(entry[2]) for entry in entries() if not isinstance(entry, Skipped)
    )
    splits: set[str] = set()
    is_first = True
    for entry in entries():
        if isinstance(entry, Skipped):
            yield entry
            continue
        if is_first:
            _check_names(entry, locate)
            is_first = False
        own_id, where, fields = entry
        if "split" in fields:
            splits.add(str(fields["split"]))
        if source.split is None or str(fields.get("split")) == source.split:
            yield from parse_entry(
                fields, record_id=own_id, where=where, locate=locate, images_only=images_only
            )
    yield Parts(check_split(source.split, splits, source.path))


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
    """Return what turns a written path or URL into a source: relative paths start from `root`."""
    start = "" if str(root) == "." else f"{str(root).rstrip('/')}/"

    def locate(name: str) -> ImageSource:
        if os.sep == "/" and _PLAIN.fullmatch(name):  # without pathlib, a third of a reader's time
            return ImageSource(start + name)
        return ImageSource(name if is_url(name) else str(root / name))

    return locate


DELIMITERS = ",\t;"
MAX_CELL_CHARS = 1_000_000
MAX_HEADER_CHARS = 16_000_000


def read_csv(source: DataSourceConfig) -> Iterator[Record | Skipped | Parts]:
    """Read a table whose first line names the columns.

    `answers`, `images` and a caption that begins with `[` may be JSON lists; answers and images are
    else separated by `;`. A box is `x y w h`, or a JSON list. An empty cell is an absent field.

    Raises:
        DataError: The file cannot be read, or its first line has no known or a misspelt column.
    """
    return records_of_entries(source, lambda: _entries(Path(source.path)))


def _entries(path: Path) -> Iterator[Entry | Skipped]:
    for number, fields in _rows(path):
        if isinstance(fields, Skipped):
            yield fields
        else:
            yield str(number), f"{path}:{number}", fields


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | Skipped]]:
    # What is not UTF-8 comes as lone surrogates, so that it can be reported by its line.
    with reading(path), open_text(path, errors="surrogateescape", newline="") as file:
        first = file.readline(MAX_HEADER_CHARS)
        _reject_utf16(first, path)
        header, delimiter = _header(first, path)
        previous = csv.field_size_limit(MAX_CELL_CHARS)
        try:
            reader = csv.reader(bounded_lines(file), delimiter=delimiter, strict=True)
            yield from _numbered_rows(reader, header, path)
        finally:
            csv.field_size_limit(previous)


def _numbered_rows(reader: Any, header: list[str], path: Path) -> Iterator[tuple[int, Any]]:
    while True:
        number = reader.line_num + 2  # the header is line 1
        where = f"{path}:{number}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, Skipped(SkipKind.BAD_RECORD, where, f"not valid CSV: {error}")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            message = f"has {len(cells)} cells, the first line names {len(header)} columns"
            yield number, Skipped(SkipKind.BAD_RECORD, where, message)
        elif any("\udc80" <= char <= "\udcff" for cell in cells for char in cell):
            yield number, Skipped(SkipKind.NOT_UTF8, where, "holds bytes that are not UTF-8")
        else:
            yield number, _fields(header, cells)


def _header(line: str, path: Path) -> tuple[list[str], str]:
    """Return the column names and the delimiter that gives the most known ones."""
    choices = []
    for delimiter in DELIMITERS:
        names = [
            n.strip() for n in next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), [])
        ]
        choices.append(
            (sum(name.lower() in FIELDS for name in names), len(names), names, delimiter)
        )
    num_known, _, names, delimiter = max(choices, key=lambda choice: choice[:2])
    names = [name.lower() if name.lower() in FIELDS else name for name in names]
    clue = misspelt_field(names)
    if clue is not None:
        raise DataError(f"{path}:1: {clue}")
    if num_known == 0:
        raise DataError(
            f"{path}:1: the first line must name the columns ({', '.join(FIELDS)}), "
            f"found {line.strip()[:80]!r}"
        )
    return names, delimiter


def _fields(header: list[str], cells: list[str]) -> dict[str, Any]:
    """Return the cells as a manifest entry's fields.

    An empty caption is kept, so that it is reported, unless the row is of another kind.
    """
    filled = {name: cell.strip() for name, cell in zip(header, cells) if cell.strip()}
    fields = {name: _typed_cell(name, cell) for name, cell in filled.items()}
    if "caption" in header and not any(name in filled for name in SUBJECTS):
        fields["caption"] = ""
    return fields


def _typed_cell(name: str, cell: str) -> Any:
    if name == "caption":
        return _list_cell(cell, None)
    if name in ("answers", "images"):
        return _list_cell(cell, ";")
    if name == "box":
        return _box_cell(cell)
    if name == "answers_weight":
        return _number_cell(cell)
    if name == "label" and re.fullmatch(r"-?[0-9]{1,18}", cell):
        return int(cell)
    return cell


def _list_cell(cell: str, separator: str | None) -> Any:
    if cell.lstrip().startswith("["):
        try:
            return json.loads(cell)
        except ValueError:
            pass  # a text that only begins with a bracket
    if separator is None:
        return cell
    return [item.strip() for item in cell.split(separator) if item.strip()]


def _number_cell(cell: str) -> Any:
    try:
        return float(cell)
    except ValueError:
        return cell


def _box_cell(cell: str) -> Any:
    try:
        return [float(number) for number in re.split(r"[\s,;]+", cell.strip("[]() "))]
    except ValueError:
        return cell


def _reject_utf16(line: str, path: Path) -> None:
    if line[:2].encode("utf-8", "surrogateescape").startswith(UTF16_BOMS):
        raise DataError(f"{path}: is UTF-16 text. Save it as UTF-8")


OWN_FIELDS = (
    *("image", "images", "caption", "question", "answers", "question_type", "answer_type"),
    *("phrase", "box", "statement", "premise", "hypothesis", "label", "text", "video"),
    *("ocr_words", "object_words", "domain", "answers_weight", "mask"),
)
"""What a manifest may give."""

FORMATS = (
    Format(
        name="jsonl",
        title="Your own manifest, as JSON Lines or a JSON list",
        fields=OWN_FIELDS,
        read=read_jsonl,
        tells="a list of entries with a manifest's fields",
        of_json=lambda content: isinstance(content, list),
        of_object=lambda _: True,
        is_fallback=True,
        parts="those of its field split",
        layouts=(
            Layout(
                "your own data",
                "own",
                "",
                (Expected("*.jsonl", "one entry a line", other=("*.json",)),),
                ("my.jsonl",),
            ),
        ),
    ),
    Format(
        name="csv",
        title="Your own manifest, as a table whose first line names the columns",
        fields=OWN_FIELDS,
        read=read_csv,
        tells="a first line that names a manifest's fields",
        of_line=lambda _: True,
        suffixes=(".csv", ".tsv"),
        is_fallback=True,
        parts="those of its column split",
        layouts=(
            Layout(
                "your own data",
                "own",
                "",
                (Expected("*.csv", "one entry a line", other=("*.tsv",)),),
                ("my.csv",),
            ),
        ),
    ),
)
