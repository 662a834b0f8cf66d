"""Parquet tables: columns named as a manifest's fields, and images as bytes or paths.

An image column holds paths (from the table's own folder), bytes, or `{bytes, path}` as the datasets
library writes them, where either may be empty; class numbers take the names that it writes beside
them. LAION's `URL` and `TEXT` are images and captions. Images are read by row group: what is not
small (100 rows) is better shuffled within a `shuffle_window`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from triptych.core.errors import DataError
from triptych.core.reading import cannot_read
from triptych.data.entries import FIELDS, IMAGE_FIELDS, misspelt_field, parse_entry
from triptych.data.readers.manifests import OWN_FIELDS, locator
from triptych.data.readers.webdataset import expand_paths
from triptych.data.records import ImageSource, Record
from triptych.data.skips import Skipped
from triptych.data.source import DataSourceConfig, Parts, check_split
from triptych.data.spec import Expected, Format, Layout
from triptych.data.tables import cell_name, open_table

SUFFIX = ".parquet"
URL_COLUMNS = {"URL": "image", "url": "image", "image_url": "image", "TEXT": "caption"}
"""Columns of lists of addresses, where the table has no image and no other caption."""
ROWS_AT_ONCE = 4096


def is_parquet(path: str) -> bool:
    """Return whether a path names tables: one, a pattern, or a folder that holds some."""
    return path.endswith(SUFFIX) or (Path(path).is_dir() and any(Path(path).glob(f"*{SUFFIX}")))


def expand_tables(path: str) -> list[str]:
    """Return the tables that a path names; see `expand_paths`."""
    return expand_paths(path, SUFFIX)


def read_parquet(source: DataSourceConfig) -> Iterator[Record | Skipped | Parts]:
    """Read one record for each row, one for each caption of a list.

    Ids are row numbers, behind the table's name where there are several; an `id` column goes
    first. Images are not read, only named.

    Raises:
        DataError: No tables, some missing or no parquet, no known column, or no such split.
    """
    paths = expand_tables(source.path)
    splits: set[str] = set()
    for path in paths:
        prefix = f"{Path(path).stem}/" if len(paths) > 1 else ""
        try:
            yield from _read_table(path, prefix, source, splits)
        except OSError as error:
            raise cannot_read(Path(path), error) from error
    yield Parts(check_split(source.split, splits, source.path))


@dataclass(frozen=True, slots=True)
class _Columns:
    """How a table's columns are read.

    Attributes:
        read: The columns that are read for the fields.
        names: Fields by the columns that are called otherwise.
        image_cell: The column of encoded images, if there is one.
        image_path: The column of paths beside it, if there is one.
        images_only: Whether they are images and nothing else.
        classes: The class names of the column `label`; empty where its cells are read as they are.
    """

    read: list[str]
    names: dict[str, str]
    image_cell: str | None
    image_path: str | None
    images_only: bool
    classes: tuple[str, ...]


def _columns(path: str, schema: Any) -> _Columns:
    import pyarrow as pa

    renamed = _address_columns(schema.names)
    fields = {name: renamed.get(name, name) for name in schema.names}
    names = [name for name, field in fields.items() if field in FIELDS]
    clue = misspelt_field(list(fields.values()))
    if clue is not None or not names:
        known = ", ".join(FIELDS)
        found = clue or f"no known column among {', '.join(schema.names[:8]) or 'none'}"
        raise DataError(f"{path}: {found} (the columns that are read: {known})")
    rest = [name for name in names if name != "image"]
    cell = image_path = None
    if "image" in names:
        kind = schema.field("image").type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            cell = "image.bytes"
            image_path = "image.path" if kind.get_field_index("path") >= 0 else None
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            cell = "image"
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            rest = names
        else:
            raise DataError(
                f"{path}: column image is {kind}: must be paths, bytes, or a struct of bytes and "
                "path"
            )
    images_only = IMAGE_FIELDS.issuperset(schema.names)
    return _Columns(rest, renamed, cell, image_path, images_only, _class_names(schema))


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
    path: str, prefix: str, source: DataSourceConfig, splits: set[str]
) -> Iterator[Record | Skipped]:
    table = open_table(path)
    columns = _columns(path, table.schema_arrow)
    locate = locator(Path(source.image_root or Path(path).parent))
    row = 0
    for group in range(table.num_row_groups):
        empty = _empty_cells(table, group, columns)
        in_group = 0
        for fields in _rows(table, group, columns, with_paths=bool(empty)):
            number, row, in_group = row, row + 1, in_group + 1
            if "split" in fields:
                splits.add(str(fields["split"]))
            if source.split is not None and str(fields.get("split")) != source.split:
                continue
            find = locate
            has_path = in_group - 1 in empty and "image" in fields
            if columns.image_cell is not None and not has_path:
                cell = cell_name(columns.image_cell, group, in_group - 1)
                find = _in_cell(ImageSource(path, number, None, cell), cell, locate)
                fields["image"] = cell
            yield from parse_entry(
                fields,
                record_id=f"{prefix}{number}",
                where=f"{path}:{number}",
                locate=find,
                images_only=columns.images_only,
            )


def _empty_cells(table: Any, group: int, columns: _Columns) -> frozenset[int]:
    """Return the rows of a group without an image's bytes; they are only read if there may be."""
    if columns.image_cell is None:
        return frozenset()
    about = table.metadata.row_group(group)
    for number in range(about.num_columns):
        column = about.column(number)
        if column.path_in_schema == columns.image_cell:
            counts = column.statistics
            if counts is not None and counts.has_null_count and counts.null_count == 0:
                return frozenset()
    cells = table.read_row_group(group, columns=[columns.image_cell], use_threads=False)
    values = cells.column(0).combine_chunks()
    if "." in columns.image_cell:
        values = values.field(0)
    return frozenset(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False)).tolist())


def _rows(
    table: Any, group: int, columns: _Columns, *, with_paths: bool
) -> Iterator[dict[str, Any]]:
    """Yield each row of a group as manifest fields, without the cells that are empty."""
    read = list(columns.read)
    if with_paths and columns.image_path is not None:
        read.append(columns.image_path)
    if not read:
        yield from ({} for _ in range(table.metadata.row_group(group).num_rows))
        return
    options = {"row_groups": [group], "columns": read, "use_threads": False}
    for batch in table.iter_batches(ROWS_AT_ONCE, **options):
        for cells in batch.to_pylist():
            image = cells.get("image")
            if isinstance(image, dict):
                cells["image"] = image.get("path")
            fields = {
                columns.names.get(name, name): value
                for name, value in cells.items()
                if value is not None
            }
            yield _named_class(fields, columns.classes) if columns.classes else fields


def _named_class(fields: dict[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields with the class's name instead of its number; -1 is no class."""
    label = fields.get("label")
    if label == -1:
        return {name: value for name, value in fields.items() if name != "label"}
    if isinstance(label, int) and 0 <= label < len(classes):
        return fields | {"label": classes[label]}
    return fields


def _in_cell(
    image: ImageSource, cell: str, locate: Callable[[str], ImageSource]
) -> Callable[[str], ImageSource]:
    """Return what locates the image in its cell, and other files, such as a mask, by name."""
    return lambda name: image if name == cell else locate(name)


FORMAT = Format(
    name="parquet",
    title="Parquet tables, also of Hugging Face's datasets: images as bytes or paths",
    fields=OWN_FIELDS,
    read=read_parquet,
    tells=f"{SUFFIX} tables",
    of_path=is_parquet,
    is_fallback=True,
    files=expand_tables,
    parts="those of its column split",
    layouts=(
        Layout(
            "tables with a manifest's fields as columns",
            "tables",
            "https://huggingface.co/datasets",
            (Expected("*.parquet", "columns image (bytes, path, or both), caption, ..."),),
            ("tables", "'hf://datasets/OWNER/NAME/data/train-*.parquet'"),
        ),
    ),
)
