"""The one kind of sample that all readers give: a record, and where its image's bytes lie."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import overload

from triptych.core.errors import DataError
from triptych.core.reading import MAX_IMAGE_BYTES
from triptych.data.pixels import encode_pixels
from triptych.data.skips import ImageProblem, SkipKind
from triptych.data.storage import read_slice, read_whole
from triptych.data.tables import read_cell


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where the bytes of one image lie: a file, a slice of a tar shard, or a table's cell.

    Attributes:
        path: The image file, the `.tar` shard, or the table (`.parquet`, `.arrow`); or its URL.
        offset: Byte offset of the image in the shard, or its row in the table; None for a file.
        size: Length of the image in the shard, in bytes; None for a file or a table, and where the
            image ends with the file.
        member: Name in the shard, for messages; in a table `column@group[row]`; None for a
            file.
        raw: How the pixels of the slice lie, if they are not encoded: see `pixels.pixel_layout`.
    """

    path: str
    offset: int | None = None
    size: int | None = None
    member: str | None = None
    raw: str | None = None

    def read(self) -> bytes:
        """Return the encoded bytes; of pixels that are not encoded, a PNG.

        Raises:
            ImageProblem: The file is missing, cannot be read, or ends before the slice does.
            RemoteError: A URL failed on every try; that is nobody's bad sample.
        """
        try:
            if self.offset is None:
                return read_whole(self.path, MAX_IMAGE_BYTES)
            if self.size is None and self.member is not None:
                return read_cell(self.path, self.member)
            if self.size is None:
                return read_whole(self.path)[self.offset :]
            data = read_slice(self.path, self.offset, self.size)
        except DataError:
            raise
        except (FileNotFoundError, NotADirectoryError):
            raise ImageProblem(SkipKind.MISSING_FILE, f"{self}: there is no such file") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
            reason = getattr(error, "strerror", None) or str(error)
            raise ImageProblem(SkipKind.UNREADABLE, f"{self}: cannot be read: {reason}") from error
        if len(data) < self.size:
            message = f"{self}: the shard ends after {len(data)} of {self.size} bytes"
            raise ImageProblem(SkipKind.TRUNCATED, message)
        return data if self.raw is None else encode_pixels(data, self.raw, str(self))

    @property
    def shard(self) -> str:
        """What is read together: the shard, or the group of rows of a table."""
        group = "" if self.member is None else self.member.partition("[")[0]
        return f"{self.path}::{group}" if self.size is None and group else self.path

    def __str__(self) -> str:
        return self.path if self.offset is None else f"{self.path}::{self.member}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One sample as it was read. Fields that its kind of data does not have are None or empty.

    Attributes:
        record_id: Unique in its source: a question id, a reference id, or a line number.
        image: The image.
        images: The images of a statement about several (NLVR2), in order.
        image_id: Equal for all records of one image in one source: COCO's five captions of a
            image are five records with one `image_id`. Other sources may use it for other ones.
        first_image: The first file that the source gives under this `image_id`; None where that is
            `image` itself.
        caption: A sentence that describes the image or the clip.
        question: A question about the image.
        answers: Human answers, 10 in VQAv2; repeated answers are kept. Empty for test questions.
        answers_weight: The sum of the answers' weights in a generator's loss, each by its share;
            None is 1. Visual Genome's single answers have 0.5 (mPLUG's released code).
        question_type: For example `color`, or VQAv2's `what is the`.
        answer_type: VQAv2's `yes/no`, `number` or `other`.
        ocr_words: Words that were read in the image, in order.
        object_words: Names of the things that were detected in the image.
        phrase: A phrase that refers to the thing in `box`.
        box: x, y, width, height in pixels of the image as it looks upright.
        statement: A sentence about `images` that is true or false.
        premise: The sentence that entailment is judged against, beside the image.
        hypothesis: The sentence whose entailment is judged.
        label: A class name or number; for `statement` a bool; for `hypothesis` one of entailment,
            neutral, contradiction; a float is a value to predict. None for test data.
        text: A text without an image.
        video: Path of a clip.
        domain: The part of its dataset that scores are also given for: NoCaps' `in-domain`,
            `near-domain` and `out-domain`.
        codes: Where the codes of the whole image lie, as `triptych data tokenize-images` stores
            them: an .npy array (P,).
        mask: The class of each pixel of `image`: a PNG whose values are classes.
    """

    record_id: str
    image: ImageSource | None = None
    images: tuple[ImageSource, ...] = ()
    image_id: str | None = None
    first_image: ImageSource | None = None
    caption: str | None = None
    question: str | None = None
    answers: tuple[str, ...] = ()
    answers_weight: float | None = None
    question_type: str | None = None
    answer_type: str | None = None
    ocr_words: tuple[str, ...] = ()
    object_words: tuple[str, ...] = ()
    phrase: str | None = None
    box: tuple[float, float, float, float] | None = None
    statement: str | None = None
    premise: str | None = None
    hypothesis: str | None = None
    label: str | int | float | bool | None = None
    text: str | None = None
    video: str | None = None
    domain: str | None = None
    codes: ImageSource | None = None
    mask: ImageSource | None = None

    def all_images(self) -> tuple[ImageSource, ...]:
        """Return every image of the record: `image`, then `images`."""
        return self.images if self.image is None else (self.image, *self.images)


class SelectedRecords(Sequence[Record]):
    """Some records of a dataset, without a copy.

    Args:
        records: The dataset.
        rows: Their numbers in it.
    """

    def __init__(self, records: Sequence[Record], rows: Sequence[int]) -> None:
        self._records, self._rows = records, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return SelectedRecords(self._records, self._rows[index])
        return self._records[self._rows[index]]


class JoinedRecords(Sequence[Record]):
    """Several datasets as one, without a copy.

    Args:
        parts: The datasets, one after the other.
    """

    def __init__(self, parts: Sequence[Sequence[Record]]) -> None:
        self.parts = tuple(parts)
        self._starts = [0, *accumulate(map(len, self.parts))]

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return SelectedRecords(self, range(len(self))[index])
        row = range(len(self))[index]
        part = bisect_right(self._starts, row) - 1
        return self.parts[part][row - self._starts[part]]

    def __iter__(self) -> Iterator[Record]:
        return chain.from_iterable(self.parts)


def shard_sizes(records: Sequence[Record]) -> tuple[int, ...] | None:
    """Return how many records in a row lie in each shard; None where an image is in no shard."""
    if hasattr(records, "shard_sizes"):  # an index knows
        known: tuple[int, ...] | None = records.shard_sizes
        return known
    if isinstance(records, JoinedRecords):
        parts = [shard_sizes(part) for part in records.parts]
        return None if None in parts else tuple(chain.from_iterable(p for p in parts if p))
    runs = ShardRuns()
    runs.add(records)
    return runs.sizes


class ShardRuns:
    """Counts the records of each shard, in a stream of them."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._shard: str | None = None
        self._is_sharded = True

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """Records of each shard in the order of the stream; None where one is in no shard."""
        return tuple(self._sizes) if self._is_sharded else None

    def add(self, records: Sequence[Record]) -> None:
        """Go on with some records."""
        for record in records if self._is_sharded else ():
            image = record.image
            if image is None or image.offset is None:
                self._is_sharded = False
                return
            if image.shard == self._shard:
                self._sizes[-1] += 1
            else:
                self._sizes.append(1)
                self._shard = image.shard


def present_fields(record: Record) -> tuple[str, ...]:
    """Return the names of the fields that a record has."""
    values = ((name, getattr(record, name)) for name in Record.__slots__)
    return tuple(name for name, value in values if value is not None and value != ())


_TEXTS = tuple(name for name in Record.__slots__ if name not in ("image", "images", "first_image",
    "answers_weight", "box", "video", "codes", "mask"))  # fmt: skip


def unwritable_field(record: Record) -> str | None:
    """Return the name of a text of a record that no encoding can write, or None.

    Names of files are not asked: what is not UTF-8 in them is kept as lone surrogates.
    """
    for name in _TEXTS:
        value = getattr(record, name)
        if value is None or value == ():
            continue
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not text.isascii() and not is_encodable(text):
                return name
    return None


def is_encodable(text: str) -> bool:
    """Return whether a text is free of lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def kinds_of(records: Sequence[Record]) -> Mapping[tuple[str, ...], int]:
    """Return how many records have which fields, and no others; of an index, without a look."""
    if hasattr(records, "kinds"):
        known: dict[tuple[str, ...], int] = records.kinds
        return known
    return Counter(map(present_fields, records))
