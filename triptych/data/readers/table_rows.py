"""Rows of a table to records: columns named as a manifest's fields, images in cells or as paths.

An image column holds paths (from the table's own folder), bytes, or `{bytes, path}` as the datasets
library writes them, where either may be empty; `images` holds lists of these. Class numbers take
the names that it writes beside them. LAION's `URL` and `TEXT` are images and captions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from triptych.core.errors import DataError
from triptych.core.reading import reading
from triptych.data.entries import FIELDS, IMAGE_FIELDS, misspelt_field, parse_entry
from triptych.data.readers.manifests import locator
from triptych.data.records import ImageSource, Record
from triptych.data.skips import Skipped
from triptych.data.source import DataSourceConfig, Parts, check_split
from triptych.data.tables import Table, cell_name, is_list, open_table

CELL_FIELDS = ("image", "images", "mask")
"""Fields that may hold encoded images."""
URL_COLUMNS = {"URL": "image", "url": "image", "image_url": "image", "TEXT": "caption"}
"""Columns of lists of addresses, where the table has no image and no other caption."""


@dataclass(frozen=True, slots=True)
class NamedTable:
    """One table of a source.

    Attributes:
        path: Its file.
        prefix: What goes before its row numbers in ids.
        split: The split that its rows are of, where it has no column `split`; None if unknown.
    """

    path: str
    prefix: str = ""
    split: str | None = None


def read_tables(
    source: DataSourceConfig, tables: list[NamedTable]
) -> Iterator[Record | Skipped | Parts]:
    """Read one record for each row, one for each caption of a list.

    Ids are row numbers behind the table's prefix; an `id` column goes first. Images are not read,
    only named.

    Raises:
        DataError: A table is missing or damaged, has no known column, or there is no such split.
    """
    splits: set[str] = set()
    for table in tables:
        with reading(table.path):
            yield from _read_table(table, source, splits)
    yield Parts(check_split(source.split, splits, source.path))


@dataclass(frozen=True, slots=True)
class _Cells:
    """A column of encoded images.

    Attributes:
        data: The column of their bytes.
        path: The column of paths beside it, if there is one.
        is_list: Whether a row has a list of them.
        is_needed: Whether an empty cell is a bad image, and not a row without one.
    """

    data: str
    path: str | None
    is_list: bool
    is_needed: bool


@dataclass(frozen=True, slots=True)
class _Columns:
    """How a table's columns are read.

    Attributes:
        read: The columns that are read for the fields.
        names: Fields by the columns that are called otherwise.
        cells: The columns of encoded images, by field.
        images_only: Whether they are images and nothing else.
        classes: The class names of the column `label`; empty where its cells are read as they are.
    """

    read: list[str]
    names: dict[str, str]
    cells: dict[str, _Cells]
    images_only: bool
    classes: tuple[str, ...]


def _columns(path: str, schema: Any) -> _Columns:
    renamed = _address_columns(schema.names)
    fields = {name: renamed.get(name, name) for name in schema.names}
    names = [name for name, field in fields.items() if field in FIELDS]
    clue = misspelt_field(list(fields.values()))
    if clue is not None or not names:
        known = ", ".join(FIELDS)
        found = clue or f"no known column among {', '.join(schema.names[:8]) or 'none'}"
        raise DataError(f"{path}: {found} (the columns that are read: {known})")
    found_cells = {
        name: _image_cells(path, schema.field(name)) for name in CELL_FIELDS if name in names
    }
    cells = {name: found for name, found in found_cells.items() if found is not None}
    images_only = IMAGE_FIELDS.issuperset(schema.names)
    rest = [name for name in names if name not in cells]
    return _Columns(rest, renamed, cells, images_only, _class_names(schema))


def _image_cells(path: str, column: Any) -> _Cells | None:
    """Return how encoded images lie in a column; None where it holds paths."""
    import pyarrow as pa

    in_lists = is_list(column.type)
    kind = column.type.value_type if in_lists else column.type
    is_needed = column.name != "mask"
    if in_lists == (column.name == "images"):
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            has_path = kind.get_field_index("path") >= 0
            beside = f"{column.name}.path" if has_path else None
            return _Cells(f"{column.name}.bytes", beside, in_lists, is_needed)
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return _Cells(column.name, None, in_lists, is_needed)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return None
    lists = "lists of " if column.name == "images" else ""
    raise DataError(
        f"{path}: column {column.name} is {column.type}: must be {lists}paths, bytes, or a struct "
        "of bytes and path"
    )


def _address_columns(names: list[str]) -> dict[str, str]:
    """Return fields by the columns of a list of addresses; nothing for another table."""
    has_caption = "caption" in names or "TEXT" in names
    if "image" in names or not has_caption:
        return {}
    found = {name: field for name, field in URL_COLUMNS.items() if name in names}
    if "image" not in found.values():
        return {}
    if "caption" in names:
        found.pop("TEXT", None)
    first = next(name for name, field in found.items() if field == "image")
    return {name: field for name, field in found.items() if field != "image" or name == first}


def _class_names(schema: Any) -> tuple[str, ...]:
    """Return the class names that the datasets library writes in a table's metadata."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = about["info"]["features"]["label"]
        names = tuple(feature["names"]) if feature["_type"] == "ClassLabel" else ()
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
    return names if all(isinstance(name, str) for name in names) else ()


def _read_table(
    named: NamedTable, source: DataSourceConfig, splits: set[str]
) -> Iterator[Record | Skipped]:
    path = named.path
    table = open_table(path)
    columns = _columns(path, table.schema)
    own_split = None if "split" in table.schema.names else named.split
    if own_split is not None:
        splits.add(own_split)
        if source.split not in (None, own_split):
            return
    locate = locator(Path(source.image_root or Path(path).parent))
    row = 0
    for group in range(table.num_groups):
        images = {
            name: _GroupImages(table, path, group, cells) for name, cells in columns.cells.items()
        }
        for in_group, fields in enumerate(_rows(table, group, columns)):
            number, row = row, row + 1
            if "split" in fields:
                splits.add(str(fields["split"]))
            if source.split is not None and source.split != str(fields.get("split", own_split)):
                continue
            places: dict[str, ImageSource] = {}
            for name, found in images.items():
                value = found.of_row(in_group, places, number)
                fields |= {name: value} if value else {}
            yield from parse_entry(
                fields,
                record_id=f"{named.prefix}{number}",
                where=f"{path}:{number}",
                # An image in a cell is known by its cell; other files by their names.
                locate=lambda name, places=places: places.get(name) or locate(name),  # type: ignore[misc]
                images_only=columns.images_only,
            )


class _GroupImages:
    """The images of a column in one group: where each lies.

    Their bytes are only read where some may be missing, and a path stand instead.
    """

    def __init__(self, table: Table, path: str, group: int, cells: _Cells) -> None:
        self._path, self._group, self._cells = path, group, cells
        self._empty: frozenset[int] = frozenset()
        self._paths = self._ends = None
        if not table.is_full(group, cells.data):
            is_null = table.cells(group, cells.data).is_null().to_numpy(zero_copy_only=False)
            self._empty = frozenset(np.flatnonzero(is_null).tolist())
        if self._empty and cells.path is not None:
            self._paths = table.cells(group, cells.path)
        if cells.is_list:
            self._ends = np.cumsum(table.lengths(group, cells.data.partition(".")[0]))

    def of_row(self, row: int, places: dict[str, ImageSource], number: int) -> str | list[str]:
        """Return the name, or the list of names, of a row's images, and note where they lie.

        Args:
            row: Of the group.
            places: By name, of those in cells.
            number: The row of the table.
        """
        if self._ends is None:
            return self._of_item(row, places, number)
        start = int(self._ends[row - 1]) if row else 0
        return [self._of_item(i, places, number) for i in range(start, int(self._ends[row]))]

    def _of_item(self, item: int, places: dict[str, ImageSource], number: int) -> str:
        if item in self._empty and self._paths is not None:
            written = self._paths[item].as_py()
            if written is not None:
                return str(written)
        if item in self._empty and not self._cells.is_needed:
            return ""
        cell = cell_name(self._cells.data, self._group, item)
        places[cell] = ImageSource(self._path, number, None, cell)
        return cell


def _rows(table: Table, group: int, columns: _Columns) -> Iterator[dict[str, Any]]:
    """Yield each row of a group as manifest fields, without the cells that are empty."""
    if not columns.read:
        yield from ({} for _ in range(table.num_rows(group)))
        return
    for batch in table.rows(group, columns.read):
        for cells in batch:
            fields = {
                columns.names.get(name, name): value
                for name, value in cells.items()
                if value is not None
            }
            yield _named_class(fields, columns.classes) if columns.classes else fields


def _named_class(fields: Mapping[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields with the class's name instead of its number; -1 is no class."""
    label = fields.get("label")
    if label == -1:
        return {name: value for name, value in fields.items() if name != "label"}
    if isinstance(label, int) and 0 <= label < len(classes):
        return {**fields, "label": classes[label]}
    return dict(fields)
