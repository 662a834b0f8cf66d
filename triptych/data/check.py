"""Look at a whole dataset before training: what is there, what is bad, what is there twice."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from triptych.core.files import write_atomic
from triptych.data.caption_cleaning import clean_caption
from triptych.data.images import decode_image
from triptych.data.manifest import read_records
from triptych.data.masks import check_mask_size, decode_mask
from triptych.data.records import ImageSource, JoinedRecords, Record
from triptych.data.shards import verify_shards
from triptych.data.skips import ImageProblem, SkipKind, Skipped
from triptych.data.source import DataSourceConfig
from triptych.data.transforms.pipeline import relative_box
from triptych.data.video import decode_frames

CLIPS_ARE_NOT_READ = "is a clip, and this task reads images alone"
NUM_FRAMES = 8  # of a clip that are decoded

COUNTED_FIELDS = (
    *("image", "images", "video", "caption", "question", "answers", "phrase", "box"),
    *("statement", "premise", "hypothesis", "label", "text", "mask"),
)
OTHER_USES = ("question", "phrase", "statement", "hypothesis")  # of a record with a caption
NUM_EXAMPLES = 3  # first examples of each kind that the report quotes
CHUNK = 256  # images handed to the threads at a time


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, middle, 95 % and largest of some numbers; all 0 where there are none."""

    minimum: float = 0.0
    median: float = 0.0
    percentile_95: float = 0.0
    maximum: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of values; between two values the 95 % point is interpolated."""
        if not values:
            return cls()
        low, median, high, maximum = np.percentile(values, [0, 50, 95, 100])
        return cls(float(low), float(median), float(high), float(maximum))


@dataclass(slots=True, kw_only=True)
class CheckReport:
    """What a check found.

    Attributes:
        sources: The paths that were read.
        num_records: Usable lines, before images were opened.
        num_usable: Records whose every image or clip decodes, whose box has a part in its image,
            and whose caption is not empty once it is cleaned.
        num_images: Distinct images and clips that the records name.
        field_counts: Records that have each field.
        width_px: Spread of the widths of good images, in pixels, upright.
        height_px: Spread of their heights.
        caption_words: Spread of the lengths of captions, in words between spaces.
        duplicate_images: Groups of images whose bytes are equal, under different names.
        duplicate_captions: Normalised captions used by more than one record, with how many.
        duplicate_pairs: Records that repeat an image together with all its texts.
        skipped: Everything that is not usable.
        num_verified: Shards whose bytes were compared with the checksum beside them.
        num_damaged: Those of them that are not as they were written, or missing.
    """

    sources: list[str]
    num_records: int = 0
    num_usable: int = 0
    num_images: int = 0
    field_counts: dict[str, int] = field(default_factory=dict)
    width_px: Spread = field(default_factory=Spread)
    height_px: Spread = field(default_factory=Spread)
    caption_words: Spread = field(default_factory=Spread)
    duplicate_images: list[list[str]] = field(default_factory=list)
    duplicate_captions: dict[str, int] = field(default_factory=dict)
    duplicate_pairs: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    num_verified: int = 0
    num_damaged: int = 0

    @property
    def num_bad(self) -> int:
        """Entries and records that training would exclude."""
        return self.num_total - self.num_usable

    @property
    def num_total(self) -> int:
        """All entries: usable records, and lines that are not."""
        return self.num_records + self._num_bad_lines

    @property
    def bad_share(self) -> float:
        """The share of all entries that training would skip, 0 to 1."""
        return self.num_bad / max(self.num_total, 1)

    @property
    def _num_bad_lines(self) -> int:
        return sum(entry.record_id is None for entry in self.skipped)

    @property
    def skip_counts(self) -> dict[str, int]:
        """How many entries were skipped for each kind, the commonest first."""
        return dict(Counter(entry.kind.value for entry in self.skipped).most_common())

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        spreads = ("width_px", "height_px", "caption_words")
        plain: dict[str, Any] = {
            name: {s: getattr(getattr(self, name), s) for s in Spread.__slots__} for name in spreads
        }
        counts = ("num_records", "num_usable", "num_images", "num_verified", "num_damaged")
        names = ("sources", "field_counts", *counts)
        plain |= {name: getattr(self, name) for name in names}
        return plain | {
            "num_total": self.num_total,
            "num_bad": self.num_bad,
            "bad_share": self.bad_share,
            "duplicate_images": self.duplicate_images,
            "duplicate_captions": self.duplicate_captions,
            "duplicate_pairs": self.duplicate_pairs,
            "skip_counts": self.skip_counts,
            "skipped": [entry.to_dict() for entry in self.skipped],
        }

    def lines(self) -> list[str]:
        """Return the report as lines of text for a terminal."""
        found = [f"{name} {count:,}" for name, count in self.field_counts.items()]
        has_clips = "video" in self.field_counts
        lines = [
            f"sources      {', '.join(self.sources)}",
            f"records      {self.num_usable:,} usable of {self.num_total:,}",
            f"fields       {', '.join(found) or 'none'}",
            f"images       {self.num_images:,} distinct{', clips counted' * has_clips}",
        ]
        if self.width_px.maximum:
            lines.append(f"width        {_spread(self.width_px, 'px')}")
            lines.append(f"height       {_spread(self.height_px, 'px')}")
        if self.caption_words.maximum:
            lines.append(f"captions     {_spread(self.caption_words, 'words')}")
        if self.num_verified:
            good = self.num_verified - self.num_damaged
            lines.append(f"checksums    {good:,} of {self.num_verified:,} shards are as written")
        return [*lines, *self._duplicate_lines(), *self._skip_lines()]

    def write_skipped(self, path: Path) -> None:
        """Write everything that is not usable as JSON Lines, one `where` a line."""
        by_where = {entry.where: entry for entry in self.skipped}
        text = "".join(json.dumps(entry.to_dict()) + "\n" for entry in by_where.values())
        write_atomic(path, text)

    def _duplicate_lines(self) -> list[str]:
        lines = []
        if self.duplicate_images:
            group = ", ".join(self.duplicate_images[0][:3])
            count = sum(len(group) - 1 for group in self.duplicate_images)
            lines.append(f"duplicates   {count:,} images are copies of others: {group}")
        if self.duplicate_captions:
            caption, count = next(iter(self.duplicate_captions.items()))
            lines.append(
                f"duplicates   {len(self.duplicate_captions):,} captions are used more than once: "
                f"{caption!r} {count:,} times"
            )
        if self.duplicate_pairs:
            lines.append(
                f"duplicates   {len(self.duplicate_pairs):,} records repeat an image with the "
                f"same text: {', '.join(self.duplicate_pairs[:NUM_EXAMPLES])}"
            )
        return lines or ["duplicates   none"]

    def _skip_lines(self) -> list[str]:
        if not self.skipped:
            return ["skipped      none"]
        lines = [f"skipped      {self.num_bad:,} of {self.num_total:,} ({self.bad_share:.2%})"]
        for kind, count in self.skip_counts.items():
            lines.append(f"  {kind}: {count:,}")
            by_where = {e.where: e for e in self.skipped if e.kind.value == kind}
            lines += [f"    {_example(entry)}" for entry in list(by_where.values())[:NUM_EXAMPLES]]
        return lines


@dataclass(frozen=True, slots=True)
class _ImageFile:
    """What is kept of one image or clip: its size and a hash of its content, or its problem."""

    width: int = 0
    height: int = 0
    digest: bytes = b""
    problem: ImageProblem | None = None


_Files = dict[ImageSource | str, _ImageFile]
"""Images by where their bytes lie, clips by their paths."""


def check_sources(
    sources: Sequence[DataSourceConfig],
    *,
    num_threads: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read every source, and decode every image and some frames of every clip.

    Args:
        sources: The datasets.
        num_threads: Images decoded at the same time.
        on_progress: Called with the images done and all images, now and then.

    Raises:
        DataError: A source cannot be read at all.
    """
    report = CheckReport(sources=[source.path for source in sources])
    parts: list[Sequence[Record]] = []
    for source in sources:
        found = read_records(source)
        parts.append(found.records)
        report.skipped += found.skipped
        num_verified, damaged = verify_shards(source.path)
        report.num_verified += num_verified
        report.num_damaged += len(damaged)
        report.skipped += damaged
    records = JoinedRecords(parts)
    images = _look_at(records, num_threads, on_progress)
    report.num_records = len(records)
    report.num_images = len(images)
    report.field_counts = _count_fields(records)
    report.num_usable = _file_problems(report, records, images)
    good = [image for image in images.values() if image.problem is None]
    report.width_px = Spread.of([image.width for image in good])
    report.height_px = Spread.of([image.height for image in good])
    captions = [record.caption for record in records if record.caption is not None]
    report.caption_words = Spread.of([len(caption.split()) for caption in captions])
    _file_duplicates(report, records, images, captions)
    return report


def normalise_text(text: str) -> str:
    """Return a text without case, punctuation and repeated spaces, to find duplicates by."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[^\w\s]|_", " ", plain).split())


def box_problem(record: Record, width: int, height: int) -> str | None:
    """Return what is wrong with a record's box in an image of this size, or None.

    As in training, a box that reaches out of the image is cut off, and is bad if nothing is left.
    """
    if record.box is None or min(relative_box(record.box, width, height)[2:]) > 0:
        return None
    return f"box {list(record.box)} lies outside the {width} x {height} image"


def caption_problem(record: Record) -> str | None:
    """Return what is wrong with a caption that its record is made for, or None.

    Pre-training and retrieval clean captions; a record with a question or another use is good
    without one.
    """
    if record.caption is None or any(getattr(record, name) for name in OTHER_USES):
        return None
    if clean_caption(record.caption):
        return None
    return f"nothing is left of the caption {record.caption!r} once it is cleaned"


def _look_at(
    records: Iterable[Record], num_threads: int, on_progress: Callable[[int, int], None] | None
) -> _Files:
    """Decode each distinct image and clip once."""
    sources = list(dict.fromkeys(shown for record in records for shown in _shown(record)))
    images: _Files = {}
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        for start in range(0, len(sources), CHUNK):
            chunk = sources[start : start + CHUNK]
            images.update(zip(chunk, pool.map(_look_at_one, chunk)))
            if on_progress is not None:
                on_progress(len(images), len(sources))
    return images


def _shown(record: Record) -> tuple[ImageSource | str, ...]:
    """Return the images of a record, or its clip, which training takes where there is no image."""
    images = record.all_images()
    return images if images or record.video is None else (record.video,)


def _look_at_one(source: ImageSource | str) -> _ImageFile:
    try:
        if isinstance(source, str):
            frames = decode_frames(source, NUM_FRAMES)
            digest = hashlib.blake2b(frames.tobytes(), digest_size=16).digest()
            return _ImageFile(frames.shape[2], frames.shape[1], digest)
        data = source.read()
        height, width = decode_image(data).shape[:2]
    except ImageProblem as problem:
        return _ImageFile(problem=problem)
    return _ImageFile(width, height, hashlib.blake2b(data, digest_size=16).digest())


def _file_problems(report: CheckReport, records: Sequence[Record], images: _Files) -> int:
    """File each record that its images make unusable; return how many are usable."""
    num_usable = 0
    for record in records:
        problem = _record_problem(record, images)
        if problem is None:
            num_usable += 1
        else:
            report.skipped.append(problem)
    return num_usable


def _record_problem(record: Record, images: _Files) -> Skipped | None:
    for source in _shown(record):
        problem = images[source].problem
        if problem is not None:
            message = str(problem).removeprefix(f"{source}: ").removeprefix("<bytes>: ")
            return Skipped(problem.kind, str(source), message, record.record_id)
    if record.image is not None:
        image = images[record.image]
        message = box_problem(record, image.width, image.height) or ""
        if message:
            where = f"{record.image} (record {record.record_id})"
            return Skipped(SkipKind.BAD_BOX, where, message, record.record_id)
        if record.mask is not None:
            try:
                check_mask_size(decode_mask(record.mask), image.width, image.height, record.mask)
            except ImageProblem as problem:
                return Skipped(problem.kind, str(record.mask), str(problem), record.record_id)
    message = caption_problem(record) or ""
    if message:
        where = f"{record.image or record.video} (record {record.record_id})"
        return Skipped(SkipKind.EMPTY_CAPTION, where, message, record.record_id)
    return None


def clip_problem(record: Record) -> Skipped | None:
    """Return why a record that shows a clip alone does not serve a task that reads images."""
    if record.video is None or record.image is not None:
        return None
    return Skipped(SkipKind.VIDEO, record.video, CLIPS_ARE_NOT_READ, record.record_id)


def _count_fields(records: Sequence[Record]) -> dict[str, int]:
    counts = Counter(
        name for record in records for name in COUNTED_FIELDS if _has(getattr(record, name))
    )
    return {name: counts[name] for name in COUNTED_FIELDS if counts[name]}


def _has(value: object) -> bool:
    return value is not None and value != ()


def _file_duplicates(
    report: CheckReport,
    records: Sequence[Record],
    images: _Files,
    captions: list[str],
) -> None:
    groups: dict[bytes, list[str]] = {}
    for source, image in images.items():
        if image.problem is None:
            groups.setdefault(image.digest, []).append(str(source))
    report.duplicate_images = [group for group in groups.values() if len(group) > 1]
    counts = Counter(map(normalise_text, captions)).most_common()
    report.duplicate_captions = {caption: count for caption, count in counts if count > 1}
    seen: set[Hashable] = set()
    for record in records:
        key = _pair_key(record, images)
        if key in seen:
            report.duplicate_pairs.append(record.record_id)
        seen.add(key)


def _pair_key(record: Record, images: _Files) -> Hashable:
    """Return what two records share that are the same sample: image bytes and all texts."""
    looks = tuple(images[source].digest or str(source) for source in _shown(record))
    texts = (record.caption, record.question, record.phrase, record.statement, record.premise)
    more = (record.hypothesis, record.text)
    words = tuple(None if text is None else normalise_text(text) for text in (*texts, *more))
    return looks, words, record.answers, record.box, record.label, record.mask


def _spread(spread: Spread, unit: str) -> str:
    return (
        f"{spread.minimum:g} to {spread.maximum:g} {unit}, median {spread.median:g}, "
        f"95 % up to {spread.percentile_95:g}"
    )


def _example(entry: Skipped) -> str:
    return f"{entry.where}: {entry.message}"
