"""What a check says about data that can be read but should not be trained on as it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

NUM_EXAMPLES = 5


class FindingKind(StrEnum):
    """What was found; `data check --write` excludes the records of `REMOVED`."""

    REPEATED_RECORD = "repeated_record"
    COPIED_IMAGE = "copied_image"
    NEAR_COPY = "near_copy"
    LEAKED_IMAGE = "leaked_image"
    LEAKED_CAPTION = "leaked_caption"
    BLANK_IMAGE = "blank_image"
    TINY_IMAGE = "tiny_image"
    EXTREME_SHAPE = "extreme_shape"
    REPEATED_CAPTION = "repeated_caption"
    BOILERPLATE = "boilerplate"
    OTHER_SCRIPT = "other_script"
    LONG_CAPTION = "long_caption"


REMOVED = frozenset(
    {
        FindingKind.REPEATED_RECORD,
        FindingKind.COPIED_IMAGE,
        FindingKind.NEAR_COPY,
        FindingKind.LEAKED_IMAGE,
        FindingKind.BLANK_IMAGE,
        FindingKind.TINY_IMAGE,
        FindingKind.OTHER_SCRIPT,
    }
)
"""What a clean manifest excludes. The other kinds concern captions that may well be right."""

ADVICE: dict[FindingKind, tuple[str, str, str]] = {
    FindingKind.REPEATED_RECORD: (
        "records repeat an image with the same text",
        "they count twice in the loss, and in a batch they are negatives of themselves",
        "keep one: --write excludes the others",
    ),
    FindingKind.COPIED_IMAGE: (
        "images have the same bytes as others",
        "they count twice, and their captions are false negatives of each other",
        "keep one, and give it all the captions: --write excludes the others",
    ),
    FindingKind.NEAR_COPY: (
        "images show the same as others, scaled, compressed, cropped or mirrored",
        "they count twice, and their captions are false negatives of each other",
        "keep the largest: --write keeps the first and excludes the others",
    ),
    FindingKind.LEAKED_IMAGE: (
        "images are also in the data compared with",
        "a model that trains on them has seen the test images: its scores are too high",
        "remove them from training: --write excludes them",
    ),
    FindingKind.LEAKED_CAPTION: (
        "captions are also in the data compared with",
        "a generated caption can be recited; common short captions are no harm",
        "look at the examples; --write keeps them",
    ),
    FindingKind.BLANK_IMAGE: (
        "images have one colour nearly everywhere",
        "no caption describes them: their gradient is noise",
        "remove them: --write excludes them",
    ),
    FindingKind.TINY_IMAGE: (
        "images have a side under 32 px",
        "enlarged to the model's size they show only blur",
        "remove them, or find the originals: --write excludes them",
    ),
    FindingKind.EXTREME_SHAPE: (
        "images are more than 3 times as long as wide, or the reverse",
        "a square crop loses most of what the caption says",
        "cut them up or remove them; --write keeps them",
    ),
    FindingKind.REPEATED_CAPTION: (
        "captions are used for more than one record",
        "in a batch, equal captions are false negatives in the contrastive loss",
        "make them more specific, or raise the batch's share of different ones",
    ),
    FindingKind.BOILERPLATE: (
        "captions share a beginning or an end with many others",
        "the model learns to recite these words, and they use up its text length",
        "cut the words off in the manifest; --write keeps them",
    ),
    FindingKind.OTHER_SCRIPT: (
        "captions are in another script than the rest",
        "a tokenizer trained on the rest reads them as unknown words",
        "translate or remove them: --write excludes them",
    ),
    FindingKind.LONG_CAPTION: (
        "captions are longer than the model reads",
        "the end of them is cut off, and never trained on",
        "shorten them, or raise the text length of the recipe; --write keeps them",
    ),
}
"""Of each kind: what was found, what it does to training, and what to do."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of trouble.

    Attributes:
        kind: What it is.
        count: How many images, captions or records have it.
        total: Of how many.
        rows: Numbers of the records concerned; the first of a group of copies is not among them.
        examples: Groups of records to look at, by their numbers; each begins with what the others
            are a copy of, if they are copies.
        words: What examples say, one a group, such as the repeated caption; empty if nothing more.
    """

    kind: FindingKind
    count: int
    total: int
    rows: tuple[int, ...]
    examples: tuple[tuple[int, ...], ...]
    words: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """The trouble in words, with its count."""
        share = self.count / max(self.total, 1)
        return f"{self.count:,} of {self.total:,} ({share:.2%}) {ADVICE[self.kind][0]}"

    @property
    def effect(self) -> str:
        """What it does to training."""
        return ADVICE[self.kind][1]

    @property
    def advice(self) -> str:
        """What to do."""
        return ADVICE[self.kind][2]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the rows."""
        plain = {k: v for k, v in asdict(self).items() if k != "rows"}
        said = {"what": self.what, "effect": self.effect, "advice": self.advice}
        return plain | {"kind": self.kind.value} | said
