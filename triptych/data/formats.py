"""All formats of datasets, and the one of a source.

A new format is one file in `readers/` with a `Format` and its name in `BUILT_IN`; a package of your
own calls `register_format`. Reading, the errors and `triptych data list` then know it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.core.reading import cannot_read, read_json
from triptych.core.registry import Registry
from triptych.data.lines import first_member, is_json_lines, parse_json_line, read_lines
from triptych.data.literals import is_pickle
from triptych.data.readers import (
    ade20k,
    clips,
    coco,
    coded_sets,
    documents,
    downloads,
    flickr30k,
    glue,
    gqa,
    imagenet,
    listed_sets,
    manifests,
    nocaps,
    parquet,
    pixel_sets,
    plain,
    reasoning,
    refcoco,
    saved_datasets,
    visual_genome,
    vqav2,
    web_pairs,
    webdataset,
)
from triptych.data.source import DataSourceConfig
from triptych.data.spec import Format
from triptych.data.storage import is_url

AUTO = "auto"
LINE_SUFFIXES = (".jsonl", ".ndjson")

FORMATS: Registry[Format] = Registry("reader")
"""By name."""

BUILT_IN: tuple[Format, ...] = (
    *manifests.FORMATS,
    nocaps.FORMAT,
    *coco.FORMATS,
    flickr30k.FORMAT,
    *downloads.FORMATS,
    *visual_genome.FORMATS,
    *clips.FORMATS,
    vqav2.FORMAT,
    gqa.FORMAT,
    refcoco.FORMAT,
    *reasoning.FORMATS,
    glue.FORMAT,
    webdataset.FORMAT,
    parquet.FORMAT,
    saved_datasets.FORMAT,
    *web_pairs.FORMATS,
    imagenet.FORMAT,
    *listed_sets.FORMATS,
    *pixel_sets.FORMATS,
    *coded_sets.FORMATS,
    ade20k.FORMAT,
    *plain.FORMATS,
    documents.FORMAT,
)
"""In the order in which the list shows them, and in which they are asked about a file."""


def register_format(added: Format) -> None:
    """Make a format known.

    Raises:
        ConfigError: Its name is taken.
    """
    FORMATS.register(added.name)(added)


def reader_names() -> list[str]:
    """Return what `reader` may be."""
    return [AUTO, *FORMATS.names()]


def recognise(source: DataSourceConfig) -> tuple[Format, Any]:
    """Return the format of a source, and its content where it had to be loaded whole.

    Raises:
        DataError: There is no such file, or it is of no format that is known.
    """
    path = Path(source.path)
    found = format_of_path(source.path)
    if found is not None:
        return found, None
    if is_url(source.path):
        raise DataError(
            f"{path}: of URLs, tar shards and parquet tables are read: name some with .tar or "
            ".parquet, such as {000000..000012}.tar, or copy the file"
        )
    if path.is_dir():
        raise _unknown_folder(path)
    if not path.is_file():
        raise cannot_read(path, FileNotFoundError())
    suffix = path.suffix.lower()
    if suffix in LINE_SUFFIXES or (suffix == ".json" and is_json_lines(path)):
        found = _first(_asks_object(path))
    elif suffix == ".json":
        return _recognise_json(path)
    elif any(suffix in known.suffixes for known in FORMATS.entries().values()):
        found = _first(_asks_line(path, suffix))
    if found is None and is_pickle(source.path):
        raise _unknown_pickle(path)
    if found is None:
        raise DataError(
            f"{path}: cannot tell the format from the suffix {suffix!r}; set reader to one of "
            f"{', '.join(FORMATS.names())}"
        )
    return found, None


def format_of_path(path: str) -> Format | None:
    """Return the format that is told by a path alone: of shards, of tables, of a folder."""
    return _first(lambda known: known.of_path is not None and known.of_path(path))


def _first(asks: Callable[[Format], bool]) -> Format | None:
    """Return the first format that says yes, the fallbacks last."""
    by_turn = sorted(FORMATS.entries().values(), key=lambda known: known.is_fallback)
    return next((known for known in by_turn if asks(known)), None)


def _asks_object(path: Path) -> Callable[[Format], bool]:
    first: dict[str, Any] = {}
    for _, line in read_lines(path):
        try:
            value = parse_json_line(line) if isinstance(line, str) else None
        except ValueError:
            continue
        if isinstance(value, dict):
            first = value
            break
    return lambda known: known.of_object is not None and known.of_object(first)


def _asks_line(path: Path, suffix: str) -> Callable[[Format], bool]:
    first = next((line for _, line in read_lines(path) if isinstance(line, str)), "")
    return lambda known: (
        suffix in known.suffixes and known.of_line is not None and known.of_line(first)
    )


def _recognise_json(path: Path) -> tuple[Format, Any]:
    member = first_member(path)
    if member is not None:
        found = _first(lambda known: known.of_member is not None and known.of_member(*member))
        if found is not None:
            return found, None
    content = read_json(path)
    found = _first(lambda known: known.of_json is not None and known.of_json(content))
    if found is not None:
        return found, content
    keys = f"the keys {', '.join(list(content)[:8])}" if isinstance(content, dict) else "no object"
    json_formats = [f for f in FORMATS.entries().values() if f.of_json or f.of_member]
    known = "; ".join(f"{known.name} has {known.tells}" for known in json_formats)
    raise DataError(f"{path}: not a format that is known: {known}; found {keys}")


def _unknown_folder(path: Path) -> DataError:
    names = sorted(p.name for p in path.iterdir())
    if not names:
        return DataError(f"{path}: the folder is empty")
    tells = [f.tells for f in reversed([*FORMATS.entries().values()]) if f.of_path is not None]
    return DataError(
        f"{path}: the folder holds neither {' nor '.join(tells)}; "
        f"name a file in it ({', '.join(names[:8])})"
    )


def _unknown_pickle(path: Path) -> DataError:
    return DataError(
        f"{path}: a pickled file is not loaded, because it can run any code; only pickles of plain "
        "values are read, of references named refs(...).p, or with reader = refcoco. If you trust "
        "where it comes from, write its data as JSON once"
    )


for _format in BUILT_IN:
    register_format(_format)
