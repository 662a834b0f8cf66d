"""What a reader is given and what it gives back."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from triptych.core.config import check
from triptych.core.errors import DataError, nearest
from triptych.data.records import Record
from triptych.data.skips import Skipped
from triptych.data.storage import is_url

T = TypeVar("T")

NUM_PROBES = 16  # items whose files are looked for before a layout is given up


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSourceConfig:
    """One dataset on disk.

    Attributes:
        path: The manifest or annotation file; a folder of class folders, of tar shards or of
            parquet tables; or a pattern such as `shards/{000000..000012}.tar` or `shards/*.tar`.
            Shards and tables may be URLs: `s3://`, `https://`, `hf://`.
        reader: The format; `auto` recognises it by extension and content.
        image_root: Folder that image and clip paths are relative to; None is the folder of the
            annotation file.
        split: The part to read if the file has several (Karpathy, RefCOCO, MSRVTT, a `split`
            column); None reads all parts.
        annotations: A second file that some formats have: VQAv2's annotations, RefCOCO's instances.
            None looks for it next to the first, under its official name.
        class_names: A file with the names of the classes that labels stand for: a line
            `<label> <name>` for each, or JSON (ImageNet's `imagenet_class_index.json`). None takes
            the labels as they are; ImageNet's names are also found beside its folders.
        max_text_tokens: Longest text alone, [CLS] and [SEP] counted: longer ones are cut into
            several records, where a sentence ends or else between words. None takes the length
            that a recipe for texts trains on, and elsewhere cuts nothing.
        tokenizer: A stored tokenizer that counts these tokens; None takes the one of
            `tokenizer.path`, or estimates them.
        kind: Kind of its batches, for tasks that take several: "pair", "image" or "text" in
            pre-training. None infers it from the first record.
        ratio: How often a step draws it, relative to the sum of all ratios. If all are None, the
            sources are joined into one dataset; if another source has a ratio, or the task takes
            several kinds, None is 1.
        name: Its name in curves and counters when sources are drawn; None is the file's name.
        index: Whether records are stored as columns on disk, in the cache folder (`$TRIPTYCH_CACHE`
            or `~/.cache/triptych`), instead of in memory: "auto" for 65,536 records or more,
            "always", or "never".
    """

    path: str
    reader: str = "auto"
    image_root: str | None = None
    split: str | None = None
    annotations: str | None = None
    class_names: str | None = None
    max_text_tokens: int | None = None
    tokenizer: str | None = None
    kind: str | None = None
    ratio: float | None = None
    name: str | None = None
    index: Literal["auto", "always", "never"] = "auto"

    def __post_init__(self) -> None:
        check(bool(self.path), "path", self.path, "name a file or folder")
        from triptych.data.formats import reader_names  # here: the formats' readers read sources

        known = reader_names()
        names = f"be one of {', '.join(known)}{nearest(self.reader, known)}"
        check(self.reader in known, "reader", self.reader, names)
        length = self.max_text_tokens
        check(length is None or length >= 3, "max_text_tokens", length, "be at least 3, or absent")
        usable = self.ratio is None or 0 <= self.ratio < float("inf")
        check(usable, "ratio", self.ratio, "be a number of at least 0, or absent")

    @property
    def root(self) -> Path:
        """The folder that relative paths start from."""
        return Path(self.path).parent if self.image_root is None else Path(self.image_root)

    def under(self, folder: str | None) -> DataSourceConfig:
        """Return the source with its relative paths below a folder; itself for None."""
        if folder is None:
            return self

        def below(path: str | None) -> str | None:
            is_whole = path is None or is_url(path) or Path(path).is_absolute()
            return path if is_whole else str(Path(folder) / str(path))

        return replace(
            self,
            path=below(self.path) or self.path,
            image_root=below(self.image_root),
            annotations=below(self.annotations),
            class_names=below(self.class_names),
        )

    def absent(self) -> list[str]:
        """Return its local paths that are not there; patterns and URLs are left to the reader."""
        paths = [
            path
            for path in (self.path, self.image_root, self.annotations, self.class_names)
            if path
        ]
        local = [path for path in paths if not is_url(path) and not set(path) & set("*?[{")]
        return [path for path in local if not Path(path).exists() or _is_empty(Path(path))]


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


@dataclass(frozen=True, slots=True)
class Parts:
    """What a reader yields beside its entries: the splits of the file, if it has several.

    Attributes:
        names: The splits, where none was asked for and there are several; else empty.
    """

    names: tuple[str, ...]


class EntrySink(Protocol):
    """Takes entries out of memory."""

    def write(self, records: Sequence[Record], skipped: Sequence[Skipped]) -> bool:
        """Return whether it took them."""
        ...


@dataclass(slots=True)
class RecordList:
    """What a reader found.

    Attributes:
        records: The usable records, in the order of the file.
        skipped: The lines or entries that are not usable, in the order of the file.
        parts: The splits of the file, where none was asked for and it has several.
    """

    records: list[Record] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    parts: tuple[str, ...] = ()

    @property
    def num_samples(self) -> int:
        """Records and skipped entries together: the size that `SkipLog` measures a share of."""
        return len(self.records) + len(self.skipped)

    @classmethod
    def of(cls, entries: Iterable[Record | Skipped | Parts]) -> RecordList:
        """Return the list of what a reader yields."""
        found = cls()
        found.add(entries)
        return found

    def add(
        self,
        entries: Iterable[Record | Skipped | Parts],
        sink: EntrySink | None = None,
        limit: int = 0,
    ) -> None:
        """File each entry on its list.

        Args:
            entries: What a reader yields.
            sink: Takes the lists each time that one holds `limit` entries, and leaves them empty.
            limit: See `sink`.
        """
        for entry in entries:
            if isinstance(entry, Record):
                self.records.append(entry)
                is_full = len(self.records) == limit
            elif isinstance(entry, Skipped):
                self.skipped.append(entry)
                is_full = len(self.skipped) == limit
            else:
                self.parts = entry.names
                continue
            if is_full and sink is not None and sink.write(self.records, self.skipped):
                self.records.clear()
                self.skipped.clear()


def source_flags(source: Any) -> str:
    """Return the flags of commands that say how a source is read, each with a space before it.

    Args:
        source: A `DataSourceConfig`, or the options of a command, which have the same fields.

    Returns:
        Flags; empty where all is as it is without any.
    """
    values = {
        "reader": None if source.reader == "auto" else source.reader,
        "image-root": source.image_root,
        "split": source.split,
        "annotations": source.annotations,
        "class-names": source.class_names,
        "index": None if source.index == "auto" else source.index,
    }
    return "".join(f" --{name} {shlex.quote(v)}" for name, v in values.items() if v is not None)


def parts_note(path: str, parts: Sequence[str]) -> str:
    """Return a sentence for a file of several splits that is read whole without being asked to."""
    return (
        f"{path} holds the parts {', '.join(parts)}, and all of them are read: choose one with "
        "--split, or with split in a config"
    )


def peek(items: Iterable[T]) -> tuple[list[T], Iterator[T]]:
    """Return the first items, which `choose_layout` looks for, and all items."""
    rest = iter(items)
    first = list(islice(rest, NUM_PROBES))
    return first, chain(first, rest)


def has_file(path: Path) -> bool:
    """Return whether a file is there; its name may be of any length, and hold anything."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def choose_layout(
    root: Path, layouts: Sequence[Callable[[Any], str]], items: Sequence[Any], what: str
) -> Callable[[Any], str]:
    """Return the first layout under which a file of one of the first items exists.

    Args:
        root: Folder that the layouts are relative to.
        layouts: Each maps an item to a relative path, `""` where it does not apply.
        items: The items; the first `NUM_PROBES` are looked for.
        what: What the files are, for the message.

    Raises:
        DataError: No file exists under any layout; the message names the paths that were tried.
            Without items there is nothing to find, and the first layout is returned.
    """
    probes = items[:NUM_PROBES]
    if not probes:
        return layouts[0]
    for layout in layouts:
        paths = (layout(item) for item in probes)
        if any(path and has_file(root / path) for path in paths):
            return layout
    relative = dict.fromkeys(layout(probes[0]) for layout in layouts)
    tried = [str(root / path) for path in relative if path]
    raise DataError(
        f"none of the first {len(probes)} {what} is found under {root}; for the first, tried: "
        f"{', '.join(tried)}. Set image_root to the folder that holds them"
    )


def check_split(
    asked: str | None, found: Iterable[str], path: str, aliases: Iterable[str] = ()
) -> tuple[str, ...]:
    """Return the splits that are read though nobody asked; raise where the asked one is missing.

    Args:
        asked: The configured split; None asks for all.
        found: The splits of the file.
        path: The file, for the message.
        aliases: Further names that are accepted.

    Returns:
        All splits of the file, if none is asked for and there are several.

    Raises:
        DataError: There is no such split.
    """
    splits = sorted(set(found))
    if asked is None:
        return tuple(splits) if len(splits) > 1 else ()
    if asked in splits or asked in aliases:
        return ()
    if not splits:
        raise DataError(f"{path}: split = {asked!r} is asked for, but the data has no splits")
    raise DataError(
        f"{path}: there is no split {asked!r}{nearest(asked, splits)} (found: {', '.join(splits)})"
    )
