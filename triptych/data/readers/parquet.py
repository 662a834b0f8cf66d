"""Parquet tables: rows as `table_rows` reads them, also of Hugging Face's hub.

Images are read by row group: what is not small (100 rows) is better shuffled within a
`shuffle_window`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from triptych.data.readers.manifests import OWN_FIELDS
from triptych.data.readers.table_rows import NamedTable, read_tables
from triptych.data.readers.webdataset import expand_paths
from triptych.data.records import Record
from triptych.data.skips import Skipped
from triptych.data.source import DataSourceConfig, Parts
from triptych.data.spec import Expected, Format, Layout
from triptych.data.tables import PARQUET

_HUB_NAME = re.compile(r"(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?")
HUB_FOLDER = "data"
"""Where a dataset's repository on the hub has its tables."""


def is_parquet(path: str) -> bool:
    """Return whether a path names tables: one, a pattern, or a folder that holds some."""
    folder = Path(path)
    return path.endswith(PARQUET) or (folder.is_dir() and _folder_of_tables(folder) is not None)


def _folder_of_tables(folder: Path) -> Path | None:
    places = (folder, folder / HUB_FOLDER)
    return next((place for place in places if any(place.glob(f"*{PARQUET}"))), None)


def expand_tables(path: str) -> list[str]:
    """Return the tables that a path names; see `expand_paths`. Of a hub's folder, those in it."""
    folder = Path(path)
    inside = _folder_of_tables(folder) if folder.is_dir() else None
    return expand_paths(path if inside is None else str(inside), PARQUET)


def hub_split(path: str) -> str | None:
    """Return the split of a table that is named as on the hub, `train-00000-of-00004.parquet`."""
    found = _HUB_NAME.fullmatch(Path(path).stem)
    return None if found is None else found[1]


def read_parquet(source: DataSourceConfig) -> Iterator[Record | Skipped | Parts]:
    """Read one record for each row, one for each caption of a list.

    Ids are row numbers, behind the table's name where there are several; an `id` column goes
    first. Images are not read, only named.

    Raises:
        DataError: No tables, some missing or no parquet, no known column, or no such split.
    """
    paths = expand_tables(source.path)
    tables = [
        NamedTable(path, f"{Path(path).stem}/" if len(paths) > 1 else "", hub_split(path))
        for path in paths
    ]
    yield from read_tables(source, tables)


FORMAT = Format(
    name="parquet",
    title="Parquet tables, also of Hugging Face's datasets: images as bytes or paths",
    fields=OWN_FIELDS,
    read=read_parquet,
    tells=f"{PARQUET} tables",
    of_path=is_parquet,
    is_fallback=True,
    files=expand_tables,
    parts="those of its column split, or of names such as train-00000-of-00004.parquet",
    layouts=(
        Layout(
            "tables with a manifest's fields as columns",
            "tables",
            "https://huggingface.co/datasets",
            (
                Expected(
                    "*.parquet",
                    "columns image (bytes, path, or both), caption, ...",
                    other=("data/*.parquet",),
                ),
            ),
            (
                "tables",
                "tables --split train",
                "'hf://datasets/OWNER/NAME/data/train-*.parquet'",
            ),
        ),
    ),
)
