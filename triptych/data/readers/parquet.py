"""Parquet tables: columns named as a manifest's fields, and images as bytes or paths.

An image column holds paths (from the table's own folder), bytes, or `{bytes, path}` as the datasets
library writes them. Images are read by row group: what is not small (100 rows) is better shuffled
within a `shuffle_window`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.data.entries import FIELDS, IMAGE_FIELDS, misspelt_field, parse_entry
from triptych.data.lines import cannot_read
from triptych.data.readers.manifests import OWN_FIELDS, locator
from triptych.data.readers.webdataset import expand_paths
from triptych.data.records import ImageSource, Record
from triptych.data.skips import Skipped
from triptych.data.source import DataSourceConfig, Parts, check_split
from triptych.data.spec import Expected, Format, Layout
from triptych.data.tables import cell_name, open_table

SUFFIX = ".parquet"
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
        image_cell: The column of encoded images, if there is one.
        images_only: Whether they are images and nothing else.
    """

    read: list[str]
    image_cell: str | None
    images_only: bool


def _columns(path: str, schema: Any) -> _Columns:
    import pyarrow as pa

    names = [name for name in schema.names if name in FIELDS]
    clue = misspelt_field(schema.names)
    if clue is not None or not names:
        known = ", ".join(FIELDS)
        found = clue or f"no known column among {', '.join(schema.names[:8]) or 'none'}"
        raise DataError(f"{path}: {found} (the columns that are read: {known})")
    images_only = IMAGE_FIELDS.issuperset(schema.names)
    if "image" not in names:
        return _Columns(names, None, images_only)
    kind = schema.field("image").type
    rest = [name for name in names if name != "image"]
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return _Columns(rest, "image.bytes", images_only)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _Columns(rest, "image", images_only)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _Columns(names, None, images_only)
    raise DataError(
        f"{path}: column image is {kind}: must be paths, bytes, or a struct of bytes and path"
    )


def _read_table(
    path: str, prefix: str, source: DataSourceConfig, splits: set[str]
) -> Iterator[Record | Skipped]:
    table = open_table(path)
    columns = _columns(path, table.schema_arrow)
    locate = locator(Path(source.image_root or Path(path).parent))
    row = 0
    for group in range(table.num_row_groups):
        in_group = 0
        for fields in _rows(table, group, columns):
            number, row, in_group = row, row + 1, in_group + 1
            if "split" in fields:
                splits.add(str(fields["split"]))
            if source.split is not None and str(fields.get("split")) != source.split:
                continue
            find = locate
            if columns.image_cell is not None:
                cell = cell_name(columns.image_cell, group, in_group - 1)
                find = _always(ImageSource(path, number, None, cell))
                fields["image"] = cell
            yield from parse_entry(
                fields,
                record_id=f"{prefix}{number}",
                where=f"{path}:{number}",
                locate=find,
                images_only=columns.images_only,
            )


def _rows(table: Any, group: int, columns: _Columns) -> Iterator[dict[str, Any]]:
    """Yield each row of a group as manifest fields, without the cells that are empty."""
    if not columns.read:
        yield from ({} for _ in range(table.metadata.row_group(group).num_rows))
        return
    options = {"row_groups": [group], "columns": columns.read, "use_threads": False}
    for batch in table.iter_batches(ROWS_AT_ONCE, **options):
        for fields in batch.to_pylist():
            yield {name: value for name, value in fields.items() if value is not None}


def _always(image: ImageSource) -> Callable[[str], ImageSource]:
    return lambda _: image


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
