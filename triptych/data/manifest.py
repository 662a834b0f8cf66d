"""Read any dataset on disk: find the format, read the records, refuse what has none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from triptych.core.errors import DataError
from triptych.core.reading import read_json, reading
from triptych.data.cache import log
from triptych.data.class_names import name_classes
from triptych.data.columns import ROWS
from triptych.data.formats import AUTO, FORMATS, format_of_path, recognise
from triptych.data.index import FileFacts, IndexReady, IndexStore, IndexWriter
from triptych.data.records import ImageSource, Record, unwritable_field
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, Parts, RecordList
from triptych.data.storage import is_url
from triptych.data.texts import cut_texts

if TYPE_CHECKING:
    from triptych.data.spec import Format, Found

__all__ = ["DataSourceConfig", "FoundRecords", "read_records", "source_facts"]

E = TypeVar("E")
NUM_FILES_LOOKED_FOR = 16


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
    if source.index == "never":
        return _read(source, None)
    with reading(source.path):
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
    with reading(source.path):
        known, entries = _entries(source)
    found = RecordList()
    entries = _adapted(_writable(entries, source.path), source)
    if isinstance(entries, RecordList):
        found = entries
    else:
        found.add(entries, writer, ROWS)
    is_written = writer is not None and writer.is_started
    if not found.records and not (is_written and writer is not None and writer.num_records):
        raise DataError(_nothing_usable(source, known.name, found.skipped))
    is_large = source.index == "always" or is_written or len(found.records) >= ROWS
    if writer is not None and is_large and writer.write(found.records, found.skipped):
        indexed = writer.finish(found.parts)
        _check_files(source, indexed.records)
        return FoundRecords(indexed.records, indexed.skipped, indexed.parts)
    _check_files(source, found.records)
    _join_images(found.records)
    return FoundRecords(found.records, found.skipped, found.parts)


def _entries(source: DataSourceConfig) -> tuple[Format, Found]:
    """Return the format of a source and what its reader gives."""
    content: Any = None
    if source.reader == AUTO:
        known, content = recognise(source)
    else:
        known = FORMATS.get(source.reader)
    is_json = known.read is None or source.path.lower().endswith(".json")
    if not is_json or known.read_json is None:
        assert known.read is not None, "a format reads a source or its content"
        return known, known.read(source)
    content = read_json(Path(source.path)) if content is None else content
    return known, known.read_json(content, source)


def _writable(entries: Found, path: str) -> Found:
    """Return what a reader gives without records whose texts no encoding can write.

    Here, too, and for each reader, whatever it raises on a file of another content than it expects
    becomes an error that names the file.
    """
    if isinstance(entries, RecordList):
        given: Iterable[Record | Skipped] = chain(entries.records, entries.skipped)
        found = RecordList.of(_writable_one(entry, path) for entry in given)
        found.parts = entries.parts
        return found
    return _writable_each(entries, path)


def _writable_each(
    entries: Iterable[Record | Skipped | Parts], path: str
) -> Iterator[Record | Skipped | Parts]:
    with reading(path):
        for entry in entries:
            yield _writable_one(entry, path)


def _writable_one(entry: E, path: str) -> E | Skipped:
    if isinstance(entry, Record):
        name = unwritable_field(entry)
        if name is not None:
            message = f"{name} holds broken characters (surrogates)"
            where = f"{path}: record {entry.record_id}"
            return Skipped(SkipKind.BAD_RECORD, where, message)
    return entry


def _adapted(entries: Found, source: DataSourceConfig) -> Found:
    """Return what a reader gives, with named classes and without long texts where asked."""
    if source.class_names is None and source.max_text_tokens is None:
        return entries
    changed: Iterable[Record | Skipped | Parts]
    if isinstance(entries, RecordList):
        parts = [Parts(entries.parts)] if entries.parts else []
        changed = chain(entries.records, entries.skipped, parts)
    else:
        changed = entries
    if source.class_names is not None:
        changed = name_classes(changed, Path(source.class_names))
    if source.max_text_tokens is not None:
        changed = cut_texts(changed, source.max_text_tokens, source.tokenizer)
    return changed


def source_facts(source: DataSourceConfig) -> FileFacts:
    """Return the files that a source is read from, with their sizes and times."""
    return _store(source).facts()


def _store(source: DataSourceConfig) -> IndexStore:
    """Return where the source's index lies."""
    known = _format_of_files(source)
    is_folder = Path(source.path).is_dir() and known is None
    settings = {
        name: getattr(source, name)
        for name in ("path", "reader", "image_root", "split", "annotations", "class_names")
    }
    if source.max_text_tokens is not None:
        settings |= {"max_text_tokens": source.max_text_tokens, "tokenizer": source.tokenizer}
    # Paths of images begin as the source's does, so the same file may have two indices.
    settings["folder"] = "" if is_url(source.path) else str(Path.cwd())
    return IndexStore(
        source.path, settings, lambda: _files(source, known), lists_again=not is_folder
    )


def _files(source: DataSourceConfig, known: Format | None) -> list[str]:
    """Return the files that a source is read from, and folders where files may come or go."""
    beside = (source.annotations, source.class_names, source.tokenizer)
    own = [path for path in beside if path is not None]
    if known is not None and known.files is not None:
        return [*known.files(source.path), *own]
    path = Path(source.path)
    files = [source.path, *own]
    if path.is_dir():
        root = path if source.split is None else path / source.split
        files += (folder for folder, _, _ in os.walk(root))
    if source.annotations is not None:
        return files
    for known in FORMATS.entries().values():
        if known.beside is not None and source.reader in (AUTO, known.name):
            files += map(str, known.beside(path))
    return list(dict.fromkeys(files))


def _format_of_files(source: DataSourceConfig) -> Format | None:
    """Return the format that says which files the source's path names; None where no format does.

    To be asked once: a folder of a million files is looked through by each format.
    """
    known = format_of_path(source.path) if source.reader == AUTO else FORMATS.get(source.reader)
    if known is None or known.files is None or known.of_path is None:
        return None
    return known if known.of_path(source.path) else None


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
