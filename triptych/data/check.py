"""Look at a whole dataset before training: what is there, what is bad, what is there twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from triptych.core.errors import DataError
from triptych.core.files import write_atomic
from triptych.data.caption_cleaning import MAX_WORDS, clean_caption
from triptych.data.codes import read_codes
from triptych.data.doctor.findings import NUM_EXAMPLES, REMOVED, Finding, FindingKind
from triptych.data.doctor.images import Images, shown_by
from triptych.data.doctor.texts import Captions, normalise_text
from triptych.data.manifest import read_records
from triptych.data.masks import check_mask_size, decode_mask
from triptych.data.records import JoinedRecords, Record
from triptych.data.shards import verify_shards
from triptych.data.skips import ImageProblem, SkipKind, Skipped
from triptych.data.source import DataSourceConfig
from triptych.data.transforms.pipeline import relative_box

CLIPS_ARE_NOT_READ = "is a clip, and this task reads images alone"

COUNTED_FIELDS = (
    *("image", "images", "video", "caption", "question", "answers", "phrase", "box"),
    *("statement", "premise", "hypothesis", "label", "text", "mask", "codes"),
)
OTHER_USES = ("question", "phrase", "statement", "hypothesis")  # of a record with a caption
SKIPPED_EXAMPLES = 3  # first examples of each kind that the report quotes
BATCH = 256  # pairs of the batch in which false negatives are counted


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
        records: The records; numbers of records are positions in it.
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
        findings: What should not be trained on as it is, by kind.
        false_negatives: Share of captions that meet an equal one in a random batch, 0 to 1.
        batch: Pairs in that batch.
        skipped: Everything that is not usable.
        bad_rows: Numbers of the records that are not usable, with the kind of what is wrong.
        num_verified: Shards whose bytes were compared with the checksum beside them.
        num_damaged: Those of them that are not as they were written, or missing.
    """

    sources: list[str]
    records: Sequence[Record] = ()
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
    findings: list[Finding] = field(default_factory=list)
    false_negatives: float = 0.0
    batch: int = BATCH
    skipped: list[Skipped] = field(default_factory=list)
    bad_rows: dict[int, str] = field(default_factory=dict)
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
            "findings": [finding.to_dict() for finding in self.findings],
            "false_negatives": self.false_negatives,
            "batch": self.batch,
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
        return [*lines, *self._finding_lines(), *self._skip_lines()]

    def write_skipped(self, path: Path) -> None:
        """Write everything that is not usable as JSON Lines, one `where` a line."""
        by_where = {entry.where: entry for entry in self.skipped}
        text = "".join(json.dumps(entry.to_dict()) + "\n" for entry in by_where.values())
        write_atomic(path, text)

    def excluded(self) -> dict[int, list[str]]:
        """Return why records are excluded of a clean manifest, by their numbers."""
        why = {row: [kind] for row, kind in self.bad_rows.items()}
        for found in self.findings:
            for row in found.rows if found.kind in REMOVED else ():
                why.setdefault(row, []).append(found.kind.value)
        return why

    def _finding_lines(self) -> list[str]:
        lines = []
        if self.false_negatives:
            lines.append(
                f"negatives    {self.false_negatives:.2%} of the captions meet an equal one in a "
                f"random batch of {self.batch}"
            )
        for found in self.findings:
            lines += [f"found        {found.what}", f"  effect     {found.effect}"]
            lines += [f"  advice     {found.advice}"]
            lines += [f"    {text}" for text in found.words[:SKIPPED_EXAMPLES]]
        return lines if self.findings else [*lines, "found        nothing"]

    def _skip_lines(self) -> list[str]:
        if not self.skipped:
            return ["skipped      none"]
        lines = [f"skipped      {self.num_bad:,} of {self.num_total:,} ({self.bad_share:.2%})"]
        for kind, count in self.skip_counts.items():
            lines.append(f"  {kind}: {count:,}")
            by_where = {e.where: e for e in self.skipped if e.kind.value == kind}
            lines += [
                f"    {_example(entry)}" for entry in list(by_where.values())[:SKIPPED_EXAMPLES]
            ]
        return lines


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckSettings:
    """How data is checked.

    Attributes:
        against: Data that must not share images with the checked data, such as the test split.
        batch: Pairs of the batch in which false negatives are counted.
        length: Of a caption, in what the limit counts; None counts words.
        limit: Longer captions are reported.
        num_threads: Images decoded at the same time.
    """

    against: tuple[DataSourceConfig, ...] = ()
    batch: int = BATCH
    length: Callable[[str], int] | None = None
    limit: int = MAX_WORDS
    num_threads: int = 2


Progress = Callable[[int, int], None]


def check_sources(
    sources: Sequence[DataSourceConfig],
    settings: CheckSettings | None = None,
    *,
    on_progress: Progress | None = None,
) -> CheckReport:
    """Read every source, and decode every image and some frames of every clip.

    Args:
        sources: The datasets.
        settings: How they are checked.
        on_progress: Called with the records done and all records, now and then.

    Raises:
        DataError: A source cannot be read at all.
    """
    settings = settings or CheckSettings()
    report = CheckReport(sources=[source.path for source in sources], batch=settings.batch)
    records = _read(sources, report)
    with ExitStack() as stack:
        images = stack.enter_context(Images())
        captions = _look_at(records, images, settings, on_progress)
        _count(report, records, images)
        copies = images.copies()
        report.duplicate_images = [
            [images.name(number, records) for number in group] for group in copies
        ]
        report.duplicate_captions = captions.repeated(records)
        _file_repeated_records(report, records, images)
        report.findings += images.findings(records, copies) + captions.findings(records)
        report.false_negatives = captions.false_negatives(settings.batch)
        if settings.against:
            other = _read(settings.against)
            others = stack.enter_context(Images())
            leaks = captions.leaks(_look_at(other, others, settings, on_progress), records)
            found = (images.leaks(others, records), leaks)
            report.findings[:0] = [finding for finding in found if finding is not None]
    return report


def _read(
    sources: Sequence[DataSourceConfig], report: CheckReport | None = None
) -> Sequence[Record]:
    """Return the records of sources; what is wrong with their files goes into the report."""
    parts: list[Sequence[Record]] = []
    for source in sources:
        found = read_records(source)
        parts.append(found.records)
        if report is not None:
            report.skipped += found.skipped
            num_verified, damaged = verify_shards(source.path)
            report.num_verified += num_verified
            report.num_damaged += len(damaged)
            report.skipped += damaged
    return JoinedRecords(parts)


def _look_at(
    records: Sequence[Record],
    images: Images,
    settings: CheckSettings,
    on_progress: Progress | None,
) -> Captions:
    """Decode each distinct image and clip once, and return the captions."""
    images.look_at(records, settings.num_threads, on_progress)
    captions = Captions(settings.length or (lambda text: len(text.split())), settings.limit)
    for row, record in enumerate(records):
        if record.caption is not None:
            captions.add(row, record.caption)
    return captions


def _count(report: CheckReport, records: Sequence[Record], images: Images) -> None:
    """Count what is there, and file what cannot be used."""
    report.records, report.num_records = records, len(records)
    report.num_images = len(images)
    report.field_counts = _count_fields(records)
    report.num_usable = _file_problems(report, records, images)
    good = images.good
    report.width_px = Spread.of(images.widths[good].tolist())
    report.height_px = Spread.of(images.heights[good].tolist())
    captions = (record.caption for record in records if record.caption is not None)
    report.caption_words = Spread.of([len(caption.split()) for caption in captions])


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


def _file_problems(report: CheckReport, records: Sequence[Record], images: Images) -> int:
    """File each record that its images make unusable; return how many are usable."""
    for row, record in enumerate(records):
        problem = _record_problem(record, images)
        if problem is not None:
            report.skipped.append(problem)
            report.bad_rows[row] = problem.kind.value
    return len(records) - len(report.bad_rows)


def _record_problem(record: Record, images: Images) -> Skipped | None:
    for source in shown_by(record):
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
        if record.codes is not None:
            try:
                read_codes(record.codes)
            except DataError as error:
                kind = error.kind if isinstance(error, ImageProblem) else SkipKind.BAD_RECORD
                return Skipped(kind, str(record.codes), str(error), record.record_id)
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


def _file_repeated_records(report: CheckReport, records: Sequence[Record], images: Images) -> None:
    first: dict[int, int] = {}
    groups: dict[int, list[int]] = {}
    for row, record in enumerate(records):
        known = first.setdefault(hash(_pair_key(record, images)), row)
        if known != row:
            report.duplicate_pairs.append(record.record_id)
            groups.setdefault(known, []).append(row)
    if groups:
        rows = tuple(sorted(row for group in groups.values() for row in group))
        shown = tuple((row, group[0]) for row, group in list(groups.items())[:NUM_EXAMPLES])
        kind = FindingKind.REPEATED_RECORD
        report.findings.append(Finding(kind, len(rows), len(records), rows, shown))


def _pair_key(record: Record, images: Images) -> Hashable:
    """Return what two records share that are the same sample: image bytes and all texts."""
    looks = tuple(images[source].digest or str(source) for source in shown_by(record))
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
