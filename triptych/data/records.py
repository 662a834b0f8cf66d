"""The one kind of sample that all readers give: a record, and where its image's bytes lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from triptych.data.skips import ImageProblem, SkipKind


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where the encoded bytes of one image lie: a file, or a slice of a tar shard.

    Attributes:
        path: The image file, or the `.tar` shard.
        offset: Byte offset of the image in the shard; None for a file.
        size: Length of the image in the shard, in bytes; None for a file.
        member: Name in the shard, for messages; None for a file.
    """

    path: str
    offset: int | None = None
    size: int | None = None
    member: str | None = None

    def read(self) -> bytes:
        """Return the encoded bytes.

        Raises:
            ImageProblem: The file is missing, cannot be read, or ends before the slice does.
        """
        try:
            if self.offset is None:
                return Path(self.path).read_bytes()
            with Path(self.path).open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except (FileNotFoundError, NotADirectoryError):
            raise ImageProblem(SkipKind.MISSING_FILE, f"{self}: there is no such file") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
            reason = getattr(error, "strerror", None) or str(error)
            raise ImageProblem(SkipKind.UNREADABLE, f"{self}: cannot be read: {reason}") from error
        if self.size is not None and len(data) < self.size:
            message = f"{self}: the shard ends after {len(data)} of {self.size} bytes"
            raise ImageProblem(SkipKind.TRUNCATED, message)
        return data

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
        codes: Where the codes of the whole image lie, as `triptych data tokenize-images` stores
            them: an .npy array (P,).
    """

    record_id: str
    image: ImageSource | None = None
    images: tuple[ImageSource, ...] = ()
    image_id: str | None = None
    first_image: ImageSource | None = None
    caption: str | None = None
    question: str | None = None
    answers: tuple[str, ...] = ()
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
    codes: ImageSource | None = None

    def all_images(self) -> tuple[ImageSource, ...]:
        """Return every image of the record: `image`, then `images`."""
        return self.images if self.image is None else (self.image, *self.images)
