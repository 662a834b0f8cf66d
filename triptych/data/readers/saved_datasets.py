"""What `save_to_disk` of Hugging Face's datasets wrote: Arrow files, which are mapped, not loaded.

A Dataset is a folder with `state.json`, which names its Arrow files in order; a DatasetDict one
with `dataset_dict.json` and a folder a split. Rows are read as those of parquet tables. The
library itself is not needed. Any image is reached without reading its neighbours, so no
`shuffle_window` is needed either.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from triptych.core.errors import DataError
from triptych.core.reading import read_json_object
from triptych.data.readers.manifests import OWN_FIELDS
from triptych.data.readers.table_rows import NamedTable, read_tables
from triptych.data.readers.webdataset import expand_paths
from triptych.data.records import Record
from triptych.data.skips import Skipped
from triptych.data.source import DataSourceConfig, Parts, check_split
from triptych.data.spec import Expected, Format, Layout
from triptych.data.tables import ARROW

STATE, SPLITS = "state.json", "dataset_dict.json"


def is_saved(path: str) -> bool:
    """Return whether a path names a saved Dataset or DatasetDict, or Arrow files."""
    return path.endswith(ARROW) or any((Path(path) / name).is_file() for name in (STATE, SPLITS))


def saved_files(path: str) -> list[str]:
    """Return all files that a path is read from."""
    folder = Path(path)
    if not folder.is_dir():
        return expand_paths(path, ARROW)
    listing = [str(folder / SPLITS)] if (folder / SPLITS).is_file() else []
    parts = _folders(folder)
    states = [str(part / STATE) for part in parts.values()]
    return [*listing, *states, *(table.path for s in parts for table in _tables(parts[s], "", s))]


def read_saved(source: DataSourceConfig) -> Iterator[Record | Skipped | Parts]:
    """Read one record for each row, one for each caption of a list.

    Ids are row numbers, behind the split and the file's name where there are several. A Dataset
    may know which split it was.

    Raises:
        DataError: No such folder, one of its files is missing or damaged, it has no known column,
            or there is no such split.
    """
    folder = Path(source.path)
    if not folder.is_dir():
        paths = expand_paths(source.path, ARROW)
        prefixes = [f"{Path(path).stem}/" if len(paths) > 1 else "" for path in paths]
        yield from read_tables(source, list(map(NamedTable, paths, prefixes)))
        return
    parts = _folders(folder)
    is_dict = (folder / SPLITS).is_file()
    if is_dict:
        check_split(source.split, map(str, parts), source.path)
    tables = [
        table
        for split, part in parts.items()
        for table in _tables(part, f"{split}/" if is_dict else "", split)
    ]
    yield from read_tables(source, tables)


def _folders(folder: Path) -> dict[str | None, Path]:
    """Return the folders of a dataset by split, in order; None where the split is not known."""
    if not (folder / SPLITS).is_file():
        split = read_json_object(folder / STATE).get("_split")
        return {split if isinstance(split, str) else None: folder}
    names = read_json_object(folder / SPLITS).get("splits")
    if not isinstance(names, list) or not all(isinstance(n, str) and _is_name(n) for n in names):
        raise DataError(f"{folder / SPLITS}: must hold a list of splits: save the dataset again")
    return {name: folder / name for name in names}


def _tables(folder: Path, prefix: str, split: str | None) -> list[NamedTable]:
    state = read_json_object(folder / STATE)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(
            f"{folder}: its rows are chosen by a second file, as old versions of datasets wrote "
            "it: load it and save it again with a newer version"
        )
    files = state.get("_data_files")
    names = [f.get("filename") if isinstance(f, dict) else None for f in files or ()]
    if not names or not all(isinstance(name, str) and _is_name(name) for name in names):
        raise DataError(f"{folder / STATE}: names no Arrow files: save the dataset again")
    return [
        NamedTable(
            str(folder / str(name)),
            f"{prefix}{Path(str(name)).stem}/" if len(names) > 1 else prefix,
            split,
        )
        for name in names
    ]


def _is_name(name: str) -> bool:
    """Return whether it is a name in a folder, and not a path that leads elsewhere."""
    return Path(name).name == name and name not in ("", "..")


FORMAT = Format(
    name="saved_dataset",
    title="Folders that save_to_disk of Hugging Face's datasets wrote, and single Arrow files",
    fields=OWN_FIELDS,
    read=read_saved,
    tells=f"{STATE} or {SPLITS} beside {ARROW} files",
    of_path=is_saved,
    files=saved_files,
    parts="those of a DatasetDict, or of the column split",
    layouts=(
        Layout(
            "a Dataset that was saved to disk",
            "saved",
            "https://huggingface.co/docs/datasets/process#save",
            (
                Expected(STATE, "the names of the Arrow files"),
                Expected("*.arrow", "columns image, caption, ... in Arrow's stream format"),
            ),
            ("saved",),
        ),
        Layout(
            "a DatasetDict that was saved to disk",
            "splits",
            "https://huggingface.co/docs/datasets/process#save",
            (
                Expected(SPLITS, "the names of the splits"),
                Expected(f"*/{STATE}", "of each split, the names of its Arrow files"),
                Expected("*/*.arrow", "columns image, caption, ... in Arrow's stream format"),
            ),
            ("splits --split train",),
        ),
    ),
)
