"""The papers' table of data: images, pairs and words per caption, of each source and of all.

Records are read one after the other, and an image counts once under its name. Names are kept as
eight bytes each, in buckets on disk once they are many, so memory does not grow with the data.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from triptych.data.manifest import read_records
from triptych.data.records import Record
from triptych.data.source import DataSourceConfig

MAX_IN_MEMORY = 2**20  # names, of each source and of all
NUM_BUCKETS = 64
PROGRESS_STEP = 65_536
COUNTED = ("question", "phrase", "statement", "hypothesis", "label")


class DistinctNames:
    """Counts distinct names in bounded memory; `close` removes what it wrote.

    A name stands for itself by 8 bytes of its hash: of 100 million, about 0.0003 are expected to
    count as another one.
    """

    def __init__(self) -> None:
        self._buffer = array("Q")
        self._folder: TemporaryDirectory[str] | None = None

    def add(self, digest: int) -> None:
        """Count a name by what `name_digest` returns for it."""
        self._buffer.append(digest)
        if len(self._buffer) >= MAX_IN_MEMORY:
            self._spill()

    def count(self) -> int:
        """Return how many distinct names were added."""
        if self._folder is None:
            return len(np.unique(np.array(self._buffer)))
        self._spill()
        paths = Path(self._folder.name).iterdir()
        return sum(len(np.unique(np.fromfile(path, dtype=np.uint64))) for path in paths)

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            self._folder.cleanup()

    def _spill(self) -> None:
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="triptych-names-")
        names = np.unique(np.array(self._buffer))
        width = 2**64 // NUM_BUCKETS
        bounds = np.array([number * width for number in range(1, NUM_BUCKETS)], dtype=np.uint64)
        for number, part in enumerate(np.split(names, np.searchsorted(names, bounds))):
            with (Path(self._folder.name) / str(number)).open("ab") as file:
                part.tofile(file)
        self._buffer = array("Q")


def name_digest(name: str) -> int:
    """Return 8 bytes that stand for a name, as a number."""
    data = name.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@dataclass(slots=True, kw_only=True)
class SourceStats:
    """What a source, or all of them, hold.

    Attributes:
        name: Of the source; "total" of all.
        num_images: Distinct images and clips.
        num_pairs: Captions of an image or a clip.
        num_caption_words: Their words, between spaces.
        num_texts: Texts alone.
        num_text_words: Their words.
        num_records: All usable records.
        num_skipped: Entries that are not usable.
        others: Records with a question, a phrase, a statement, a hypothesis or a label.
    """

    name: str
    num_images: int = 0
    num_pairs: int = 0
    num_caption_words: int = 0
    num_texts: int = 0
    num_text_words: int = 0
    num_records: int = 0
    num_skipped: int = 0
    others: Counter[str] = field(default_factory=Counter)

    @property
    def words_per_caption(self) -> float | None:
        """Mean words of a caption; None without captions."""
        return self.num_caption_words / self.num_pairs if self.num_pairs else None

    @property
    def words_per_text(self) -> float | None:
        """Mean words of a text alone; None without any."""
        return self.num_text_words / self.num_texts if self.num_texts else None

    def add(self, record: Record) -> None:
        """Count a record, but for its images."""
        self.num_records += 1
        has_image = bool(record.all_images()) or record.video is not None
        if record.caption is not None and has_image:
            self.num_pairs += 1
            self.num_caption_words += len(record.caption.split())
        text = record.text or record.caption
        if text is not None and not has_image:
            self.num_texts += 1
            self.num_text_words += len(text.split())
        for name in COUNTED:
            if getattr(record, name) is not None:
                self.others[name] += 1

    def include(self, other: SourceStats) -> None:
        """Add another source's numbers, but for the images."""
        for name in ("num_pairs", "num_caption_words", "num_texts", "num_text_words",
                     "num_records", "num_skipped"):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.others.update(other.others)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values for JSON."""
        means = {"words_per_caption": self.words_per_caption, "words_per_text": self.words_per_text}
        return asdict(self) | {"others": dict(self.others)} | means


def collect_stats(
    sources: Iterable[DataSourceConfig], on_progress: Callable[[str, int], None] | None = None
) -> list[SourceStats]:
    """Read sources and return the numbers of each, and of all as the last.

    Args:
        sources: The datasets. An image that two of them name alike counts once in the total.
        on_progress: Called with a source's name and its records so far.

    Raises:
        DataError: A source cannot be read.
    """
    total, every = SourceStats(name="total"), DistinctNames()
    rows = []
    try:
        for source in sources:
            row = _source_stats(source, every, on_progress)
            total.include(row)
            rows.append(row)
        total.num_images = every.count()
    finally:
        every.close()
    return [*rows, total]


def _source_stats(
    source: DataSourceConfig,
    every: DistinctNames,
    on_progress: Callable[[str, int], None] | None,
) -> SourceStats:
    found = read_records(source)
    name = source.name or Path(source.path).name or source.path
    row = SourceStats(name=name, num_skipped=len(found.skipped))
    own = DistinctNames()
    try:
        for record in found.records:
            row.add(record)
            names = [str(image) for image in record.all_images()]
            if record.video is not None:
                names.append(record.video)
            for digest in map(name_digest, names):
                own.add(digest)
                every.add(digest)
            if on_progress is not None and row.num_records % PROGRESS_STEP == 0:
                on_progress(name, row.num_records)
        row.num_images = own.count()
    finally:
        own.close()
    return row
