"""What a format of datasets says about itself: how it is recognised and read, and its files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from triptych.data.records import Record
    from triptych.data.skips import Skipped
    from triptych.data.source import DataSourceConfig, Parts, RecordList

    Found: TypeAlias = RecordList | Iterable[Record | Skipped | Parts]
    """What a reader gives: a list, or, of data of any size, one entry after the other."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Files of a published dataset, as they lie once it is unpacked.

    Attributes:
        path: Relative to the dataset's folder; `*`, `?` and `**` as in a shell.
        what: What they hold, in a few words.
        count: How many there are as published; None where one is enough.
        optional: Whether the dataset is usable without.
        other: Further places where the reader looks, each as `path`.
    """

    path: str
    what: str
    count: int | None = None
    optional: bool = False
    other: tuple[str, ...] = ()

    def num_found(self, folder: Path) -> int:
        """Return how many of the files lie under a folder, at the place that holds the most."""
        return max(_num_files(folder, path) for path in (self.path, *self.other))


@dataclass(frozen=True, slots=True)
class Layout:
    """One published dataset that a format reads.

    Attributes:
        dataset: Its name, and whose it is.
        folder: What its folder is called under a folder of several datasets.
        source: Where it is published.
        files: What it consists of.
        examples: Paths and flags that read it, as written behind `--data`.
    """

    dataset: str
    folder: str
    source: str
    files: tuple[Expected, ...]
    examples: tuple[str, ...] = ()

    def find(self, root: Path, is_own: bool = False) -> LayoutReport:
        """Say what of the dataset lies under a folder, be it its own or one of several datasets.

        Args:
            root: The folder.
            is_own: Whether it is known to be the dataset's own; else that is guessed.
        """
        named, own = (
            LayoutReport(self, place, self._counts(place)) for place in (root / self.folder, root)
        )
        # Folders of images, or a few files of common names (train.jsonl), do not make it its own.
        says = sum(
            count > 0 and not files.path.startswith("*/")
            for count, files in zip(own.counts, self.files, strict=True)
        )
        is_own |= root.name == Path(self.folder).name or 2 * says > len(self.files)
        return own if is_own and own.num_present > named.num_present else named

    def _counts(self, folder: Path) -> tuple[int, ...]:
        return tuple(files.num_found(folder) for files in self.files)


@dataclass(frozen=True, slots=True)
class LayoutReport:
    """What of a dataset lies in a folder.

    Attributes:
        layout: The dataset.
        folder: The folder.
        counts: How many of each of the layout's `files` were found.
        also_missing: What the format says is missing, beside them.
        remarks: What else it says.
    """

    layout: Layout
    folder: Path
    counts: tuple[int, ...]
    also_missing: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def num_present(self) -> int:
        """How many of the entries of `files` are there, at least in part."""
        return sum(count > 0 for count in self.counts)

    @property
    def missing(self) -> list[str]:
        """What is missing, and where, one sentence each."""
        files_missing = [
            _shortfall(self.folder, files, count)
            for files, count in zip(self.layout.files, self.counts, strict=True)
            if not files.optional and count < (files.count or 1)
        ]
        return [*files_missing, *self.also_missing]

    @property
    def state(self) -> str:
        """`complete`, `incomplete` or `absent`."""
        if not self.num_present:
            return "absent"
        return "incomplete" if self.missing else "complete"


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A format of datasets: one of `read` and `read_json`, and what recognises its files.

    With `reader="auto"` the formats are asked in the order of their registration, the fallbacks
    last; a format is only asked what it can answer.

    Attributes:
        name: What `reader` takes.
        title: Its name in words.
        fields: The fields of `Record` that it may give, beside the ids.
        read: Reads a source. A generator is never held in memory as a whole.
        read_json: Reads the content of a file that is one JSON value; where a format has both, a
            `.json` file is read so.
        tells: What its files or folders hold, in words that follow "holds".
        of_path: Says by a path alone (a file, a folder, a pattern, a URL) whether it is read.
        of_member: The same by the first key and value of a `.json` file's object, or the first
            index and item of its list, so that a large file need not be loaded.
        of_json: The same by the content of a `.json` file.
        of_object: The same by the first object of a file of JSON Lines; `{}` if it has none.
        of_line: The same by the first line of a file with one of `suffixes`; "" if it has none.
        suffixes: Of the text files that `of_line` is asked about.
        is_fallback: Whether it is asked after all others.
        files: Returns the files that a path names, where `of_path` is true: patterns, folders.
        beside: Returns the files that may be read beside a file, whether they are there or not.
        parts: The splits that `split` takes, in words.
        layouts: The published datasets that it reads.
        missing: Says what else is missing in the folder of a dataset, one sentence each.
        remarks: Says what else is to be known of such a folder.
    """

    name: str
    title: str
    fields: tuple[str, ...]
    read: Callable[[DataSourceConfig], Found] | None = None
    read_json: Callable[[Any, DataSourceConfig], Found] | None = None
    tells: str = ""
    of_path: Callable[[str], bool] | None = None
    of_member: Callable[[str | int, Any], bool] | None = None
    of_json: Callable[[Any], bool] | None = None
    of_object: Callable[[Mapping[str, Any]], bool] | None = None
    of_line: Callable[[str], bool] | None = None
    suffixes: tuple[str, ...] = ()
    is_fallback: bool = False
    files: Callable[[str], list[str]] | None = None
    beside: Callable[[Path], Sequence[Path]] | None = None
    parts: str = ""
    layouts: tuple[Layout, ...] = ()
    missing: Callable[[Path], list[str]] | None = None
    remarks: Callable[[Path], list[str]] | None = None

    def __post_init__(self) -> None:
        if self.read is None and self.read_json is None:
            raise TypeError(f"format {self.name!r} must have read or read_json")

    def find(self, root: Path) -> list[LayoutReport]:
        """Return what of each dataset lies under a folder."""
        is_own = self.of_path is not None and self.of_path(str(root))
        return [self._complete(layout.find(root, is_own)) for layout in self.layouts]

    def _complete(self, report: LayoutReport) -> LayoutReport:
        if not report.num_present:
            return report
        missing, remarks = (
            tuple(say(report.folder)) if say is not None else ()
            for say in (self.missing, self.remarks)
        )
        return replace(report, also_missing=missing, remarks=remarks)


def _shortfall(folder: Path, files: Expected, count: int) -> str:
    places = " or ".join(str(folder / path) for path in (files.path, *files.other))
    if count:
        return f"{places}: {count:,} of {files.count:,} ({files.what})"
    return f"{places}: missing ({files.what})"


def _num_files(folder: Path, pattern: str) -> int:
    """Return how many files or folders match a pattern below a folder; it need not exist."""
    if not any(sign in pattern for sign in "*?"):
        return int((folder / pattern).exists())
    return sum(1 for _ in folder.glob(pattern)) if folder.is_dir() else 0
