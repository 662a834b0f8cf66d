"""Read any dataset on disk: find the format, read the records, refuse what has none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.data.cache import log
from triptych.data.columns import ROWS
from triptych.data.index import FileFacts, IndexReady, IndexStore, IndexWriter
from triptych.data.lines import cannot_read, load_json, parse_json_line, read_lines
from triptych.data.readers.coco import (
    is_coco,
    is_karpathy,
    is_msrvtt,
    read_coco,
    read_karpathy,
    read_msrvtt,
)
from triptych.data.readers.glue import is_glue, read_glue
from triptych.data.readers.manifests import read_csv, read_jsonl
from triptych.data.readers.parquet import expand_tables, is_parquet, read_parquet
from triptych.data.readers.plain import is_image_folder, read_image_folder, read_text_file
from triptych.data.readers.reasoning import (
    is_hateful_memes,
    is_nlvr2,
    is_snli_ve,
    read_hateful_memes,
    read_nlvr2,
    read_snli_ve,
)
from triptych.data.readers.refcoco import INSTANCES_FILE, is_refcoco, read_refcoco, reject_pickle
from triptych.data.readers.vqav2 import annotation_paths, is_vqav2, read_vqav2
from triptych.data.readers.webdataset import expand_shards, is_shards, read_webdataset
from triptych.data.records import ImageSource, Record
from triptych.data.skips import Skipped
from triptych.data.source import READER_NAMES, DataSourceConfig, Parts, RecordList
from triptych.data.storage import is_url

__all__ = ["READER_NAMES", "DataSourceConfig", "FoundRecords", "read_records", "source_facts"]

NUM_FILES_LOOKED_FOR = 16

Entries = Iterable[Record | Skipped | Parts]

# Readers of data of any size, which give one entry after the other.
STREAMS: Mapping[str, Callable[[DataSourceConfig], Entries]] = {
    "jsonl": read_jsonl,
    "csv": read_csv,
    "image_folder": read_image_folder,
    "text": read_text_file,
    "webdataset": read_webdataset,
    "parquet": read_parquet,
}
# Readers of other files that are not one JSON value.
READERS: Mapping[str, Callable[[DataSourceConfig], RecordList]] = {
    "nlvr2": read_nlvr2,
    "snli_ve": read_snli_ve,
    "hateful_memes": read_hateful_memes,
    "glue": read_glue,
}
# Readers of one JSON value, with what tells their content. Karpathy before COCO: both have images.
JSON_READERS: Mapping[
    str, tuple[Callable[[Any], bool], Callable[[Any, DataSourceConfig], RecordList]]
] = {
    "karpathy": (is_karpathy, read_karpathy),
    "coco": (is_coco, read_coco),
    "vqav2": (is_vqav2, read_vqav2),
    "refcoco": (is_refcoco, read_refcoco),
    "msrvtt": (is_msrvtt, read_msrvtt),
}
SUFFIX_READERS = {".csv": "csv", ".tsv": "csv", ".txt": "text"}
LINE_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(slots=True)
class FoundRecords:
    """What was read of one dataset; large data lies on disk.

    Attributes:
        records: The usable records, in the order of the file.
        skipped: The lines or entries that are not usable, in the order of the file.
        parts: The splits of the file, where none was asked for and it has several.
    """

    records: Sequence[Record]
    skipped: Sequence[Skipped]
    parts: tuple[str, ...] = ()

    @property
    def num_samples(self) -> int:
        """Records and skipped entries together: the size that `SkipLog` measures a share of."""
        return len(self.records) + len(self.skipped)


def read_records(source: DataSourceConfig) -> FoundRecords:
    """Read all records of one dataset, or find them in the index that an earlier start made.

    Images are not opened, but a few are looked for, so that a wrong `image_root` shows at once.

    Args:
        source: What to read. `reader="auto"` goes by a `.tar` or `.parquet`, a folder's content,
            the suffix (`.jsonl`, `.csv`, `.tsv`, `.txt`), and for JSON and GLUE's `.tsv` by the
            content.

    Returns:
        The usable records in the order of the file, and what was skipped.

    Raises:
        DataError: The file is missing or of no known format, its fields are misspelt, none of the
            images is where it should be, or no record is usable.
    """
    reject_pickle(Path(source.path))
    if source.index == "never":
        return _read(source, None)
    store = _store(source)
    found = store.find()
    if found is not None:
        try:
            _check_files(source, found.records)
            return FoundRecords(found.records, found.skipped, found.parts)
        except DataError as error:  # the images may have moved: another layout may find them
            log.warning("%s: reading it again", error)
            store.remove()
    with store.writer() as writer:
        try:
            return _read(source, writer)
        except IndexReady as ready:
            return FoundRecords(ready.found.records, ready.found.skipped, ready.found.parts)


def _read(source: DataSourceConfig, writer: IndexWriter | None) -> FoundRecords:
    name = source.reader
    content: Any = None
    if name == "auto":
        name, content = _recognise(source)
    found = RecordList()
    if name in STREAMS:
        found.add(STREAMS[name](source), writer, ROWS)
    elif name in READERS:
        found = READERS[name](source)
    else:
        content = load_json(Path(source.path)) if content is None else content
        found = JSON_READERS[name][1](content, source)
    is_written = writer is not None and writer.is_started
    if not found.records and not (is_written and writer is not None and writer.num_records):
        raise DataError(_nothing_usable(source, name, found.skipped))
    is_large = source.index == "always" or is_written or len(found.records) >= ROWS
    if writer is not None and is_large and writer.write(found.records, found.skipped):
        indexed = writer.finish(found.parts)
        _check_files(source, indexed.records)
        return FoundRecords(indexed.records, indexed.skipped, indexed.parts)
    _check_files(source, found.records)
    _join_images(found.records)
    return FoundRecords(found.records, found.skipped, found.parts)


def source_facts(source: DataSourceConfig) -> FileFacts:
    """Return the files that a source is read from, with their sizes and times."""
    return _store(source).facts()


def _store(source: DataSourceConfig) -> IndexStore:
    """Return where the source's index lies."""
    path = Path(source.path)
    is_folder = path.is_dir() and not is_shards(source.path) and not is_parquet(source.path)
    settings = {
        name: getattr(source, name)
        for name in ("path", "reader", "image_root", "split", "annotations")
    }
    # Paths of images begin as the source's does, so the same file may have two indices.
    settings["folder"] = "" if is_url(source.path) else str(Path.cwd())
    return IndexStore(source.path, settings, lambda: _files(source), lists_again=not is_folder)


def _files(source: DataSourceConfig) -> list[str]:
    """Return the files that a source is read from, and folders where files may come or go."""
    path = Path(source.path)
    if is_shards(source.path):
        return expand_shards(source.path)
    if is_parquet(source.path):
        return expand_tables(source.path)
    if path.is_dir():
        root = path if source.split is None else path / source.split
        return [source.path, *(folder for folder, _, _ in os.walk(root))]
    files = [source.path]
    if source.annotations is not None:
        files.append(source.annotations)
    elif path.suffix.lower() == ".json":
        files += map(str, [*annotation_paths(path), path.with_name(INSTANCES_FILE)])
    return files


def _recognise(source: DataSourceConfig) -> tuple[str, Any]:
    """Return the reader's name, and the file's content where it had to be read whole."""
    path = Path(source.path)
    if is_shards(source.path):
        return "webdataset", None
    if is_parquet(source.path):
        return "parquet", None
    if is_url(source.path):
        raise DataError(
            f"{path}: of URLs, tar shards and parquet tables are read: name some with .tar or "
            ".parquet, such as {000000..000012}.tar, or copy the file"
        )
    if path.is_dir():
        if is_image_folder(path):
            return "image_folder", None
        raise DataError(
            f"{path}: the folder holds neither class folders with images nor .tar shards "
            "nor .parquet tables; "
            f"name a file in it ({', '.join(sorted(p.name for p in path.iterdir())[:8]) or 'none'})"
        )
    if not path.is_file():
        raise cannot_read(path, FileNotFoundError())
    suffix = path.suffix.lower()
    if suffix in LINE_SUFFIXES:
        return _recognise_lines(path), None
    if suffix == ".tsv" and is_glue(path):
        return "glue", None
    if suffix in SUFFIX_READERS:
        return SUFFIX_READERS[suffix], None
    if suffix == ".json":
        return _recognise_json(path)
    raise DataError(
        f"{path}: cannot tell the format from the suffix {suffix!r}; set reader to one of "
        f"{', '.join(READER_NAMES[1:])}"
    )


def _recognise_lines(path: Path) -> str:
    """Return the reader for a JSON Lines file by its first object."""
    for _, line in read_lines(path):
        if isinstance(line, Skipped):
            continue
        try:
            value = parse_json_line(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            if is_nlvr2(value):
                return "nlvr2"
            if is_hateful_memes(value):
                return "hateful_memes"
            return "snli_ve" if is_snli_ve(value) else "jsonl"
    return "jsonl"


def _recognise_json(path: Path) -> tuple[str, Any]:
    content = load_json(path)
    for name, (is_format, _) in JSON_READERS.items():
        if is_format(content):
            return name, content
    if isinstance(content, list):
        return "jsonl", None
    keys = f"the keys {', '.join(list(content)[:8])}" if isinstance(content, dict) else "no object"
    raise DataError(
        f"{path}: not a format that is known: Karpathy and COCO captions have 'images', VQAv2 "
        f"questions 'questions', MSRVTT 'videos' and 'sentences', RefCOCO and manifests are lists; "
        f"found {keys}"
    )


def _nothing_usable(source: DataSourceConfig, name: str, skipped: list[Skipped]) -> str:
    if not skipped:
        return f"{source.path}: holds no record (read as {name!r})"
    first = "; ".join(f"{s.where}: {s.message}" for s in skipped[:3])
    return (
        f"{source.path}: none of its {len(skipped)} entries is usable (read as {name!r}). "
        f"The first: {first}"
    )


def _join_images(records: list[Record]) -> None:
    """Note the first file of each `image_id` on the records that have another one."""
    first_of: dict[str, ImageSource] = {}
    for index, record in enumerate(records):
        if record.image is None or record.image_id is None:
            continue
        first = first_of.setdefault(record.image_id, record.image)
        if first != record.image:
            records[index] = replace(record, first_image=first)


def _check_files(source: DataSourceConfig, records: Sequence[Record]) -> None:
    """Stop where none of a few images and clips, spread over the dataset, exists."""
    step = max(1, len(records) // NUM_FILES_LOOKED_FOR)
    paths = []
    for record in records[::step][:NUM_FILES_LOOKED_FOR]:
        paths += [image.path for image in record.all_images() if not is_url(image.path)]
        paths += [record.video] if record.video is not None else []
    if paths and not any(_exists(path) for path in paths):
        raise DataError(
            f"{source.path}: none of the {len(paths)} images or clips that were looked for "
            f"exists; the first: {paths[0]}. Set image_root to the folder that relative paths "
            f"start from (now {source.root})"
        )


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL character
        return False
