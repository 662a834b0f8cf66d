"""What is skipped in the data: kinds, one entry, and the log that stops a run with too many."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from triptych.core.errors import DataError

LINES_AT_ONCE = 4096
MAX_RECENT = 4096
NUM_EXAMPLES = 5  # entries quoted in the error
MOSTLY = 0.5  # share of bad samples from which on the data is taken to be of another task
TRAIN_FLAG = "--data.max-bad-share"
VERB_FLAG = "--max-bad-share"  # of the verbs that read data without training on it


class SkipKind(StrEnum):
    """Why a line, an image or a text cannot be used."""

    MISSING_FILE = "missing_file"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    NOT_AN_IMAGE = "not_an_image"
    NOT_A_CLIP = "not_a_clip"
    DECOMPRESSION_BOMB = "decompression_bomb"
    EMPTY_CAPTION = "empty_caption"
    CAPTION_NOT_TEXT = "caption_not_text"
    BAD_ANSWERS = "bad_answers"
    BAD_BOX = "bad_box"
    BAD_LABEL = "bad_label"
    BAD_JSON = "bad_json"
    NOT_UTF8 = "not_utf8"
    MISSING_FIELD = "missing_field"
    BAD_RECORD = "bad_record"
    VIDEO = "video"
    BAD_CHECKSUM = "bad_checksum"


@dataclass(frozen=True, slots=True)
class Skipped:
    """One skipped sample or entry.

    Attributes:
        kind: Why.
        where: Exact position: `manifest.jsonl:12`, `captions.json: annotations[3]`, or the image.
        message: What is wrong with it, in words.
        record_id: The record that lost its image, where one image serves several records.
    """

    kind: SkipKind
    where: str
    message: str
    record_id: str | None = None

    def to_dict(self) -> dict[str, str]:
        """Return the entry as one line of `skipped.jsonl` holds it."""
        return {"kind": self.kind.value, "where": self.where, "message": self.message}


class ImageProblem(DataError):  # noqa: N818 - one image's problem, mostly skipped, not raised
    """An image cannot be used; `kind` says why."""

    def __init__(self, kind: SkipKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[ImageProblem], tuple[SkipKind, str]]:
        return type(self), (self.kind, str(self))


class SkipLog:
    """Count and list what is skipped; stop once more than a set share of the samples is bad.

    The share is the number of distinct bad samples over the size of the dataset, so it does not
    grow when an epoch meets the same bad file again. Each sample is listed once in
    `skipped.jsonl`, which a resumed run goes on with.
    """

    def __init__(
        self,
        folder: Path | None,
        num_samples: int,
        max_share: float = 0.01,
        *,
        file_name: str = "skipped.jsonl",
        flag: str = TRAIN_FLAG,
    ) -> None:
        """Open the log.

        Args:
            folder: Where `skipped.jsonl` is written; None writes no file.
            num_samples: Size of the dataset, bad lines included.
            max_share: Largest allowed share of bad samples, from 0 to 1.
            file_name: Of the list; each of several processes needs its own.
            flag: What sets `max_share` on the command line, for the error.

        Raises:
            DataError: `max_share` is not a share.
        """
        if not 0 <= max_share <= 1:
            raise DataError(f"max_bad_share = {max_share!r}: must be from 0 to 1")
        self.path = None if folder is None else folder / file_name
        self.num_samples = num_samples
        self.max_share = max_share
        self.flag = flag
        self.counts: Counter[SkipKind] = Counter()
        self.examples: list[Skipped] = []
        self.num_ok = 0
        self._samples = _Seen()
        self._listed = _listed_before(self.path)

    @property
    def num_bad(self) -> int:
        """How many distinct samples are bad."""
        return len(self._samples)

    @property
    def share(self) -> float:
        """The share of the dataset's samples that is bad, 0 to 1."""
        return self.num_bad / max(self.num_samples, 1)

    def add(self, skipped: Skipped) -> None:
        """Count one bad sample, and list it where it is new.

        Raises:
            DataError: More than `max_share` of the samples is bad now.
        """
        self.add_all([skipped])

    def add_all(self, skipped: Iterable[Skipped]) -> None:
        """Count and list many, then judge: the list is whole even where the run stops.

        Raises:
            DataError: More than `max_share` of the samples is bad.
        """
        before = self.num_bad
        lines: list[str] = []
        for entry in skipped:
            if not self._samples.add(entry.where, entry.record_id):
                continue
            self.counts[entry.kind] += 1
            if len(self.examples) < NUM_EXAMPLES:
                self.examples.append(entry)
            if self.path is not None and self._listed.add(entry.where):
                lines.append(json.dumps(entry.to_dict()) + "\n")
            if len(lines) == LINES_AT_ONCE:
                self._write(lines)
        self._write(lines)
        if self.num_bad > before and self.share > self.max_share:
            raise DataError(self._too_many())

    def count_ok(self, num: int = 1) -> None:
        """Count `num` samples that were used, for the summary."""
        self.num_ok += num

    def summary(self) -> str:
        """Return one line: `3 of 200 samples skipped: 2 truncated, 1 not_an_image`."""
        if not len(self._samples):
            return "no sample skipped"
        return f"{self.num_bad} of {self.num_samples} samples skipped: {self._kinds()}"

    def report(self) -> str:
        """Return the summary where something is bad, and where it is listed, or some of it."""
        if self.path is not None:
            return f"{self.summary()}; listed in {self.path}"
        return f"{self.summary()}; some: {self._some()}"

    def _kinds(self) -> str:
        return ", ".join(f"{count} {kind.value}" for kind, count in self.counts.most_common())

    def _some(self) -> str:
        return "; ".join(f"{entry.where} ({entry.kind.value})" for entry in self.examples)

    def _write(self, lines: list[str]) -> None:
        if self.path is not None and lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
            lines.clear()

    def _too_many(self) -> str:
        if self.path is not None:
            listed = f"They are listed in {self.path}."
        else:
            listed = f"Some: {self._some()}."
        first = self.examples[0]
        told = first.message.removeprefix(f"{first.where}: ").rstrip(".")
        told = f"{first.where}: {told}"
        if self.share > MOSTLY:
            advice = "Most of the data is not what this task reads: is it the right one for it?"
        else:
            allowed = f"{self.flag} {share_to_allow(self.share):g}"
            advice = f"Fix or remove them, or allow more with {allowed}"
            if self.flag == TRAIN_FLAG:
                advice += ", which --resume takes too"
        return (
            f"{self.num_bad} of {self.num_samples} samples are bad so far ({self.share:.2%}): "
            f"{self._kinds()}. At most {self.max_share:.2%} is allowed. {listed} "
            f"The first, {told}. {advice}"
        )


def share_to_allow(share: float) -> float:
    """Return the next whole percent of a share, as a share: what a run must allow to go on."""
    return min(1.0, math.ceil(round(share * 100, 6)) / 100)


class _Seen:
    """Which texts were added: 8 bytes each in memory, since bad samples may be many.

    Of a million, two have one hash with a chance of 3e-8; one would not be counted then.
    """

    def __init__(self) -> None:
        self._sorted = np.zeros(0, dtype=np.uint64)
        self._recent: set[int] = set()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def add(self, *texts: str | None) -> bool:
        """Add texts, as one; return whether they are new."""
        plain = repr(texts).encode("utf-8", "surrogatepass")
        key = int.from_bytes(hashlib.blake2b(plain, digest_size=8).digest())
        slot = int(np.searchsorted(self._sorted, np.uint64(key)))
        is_old = slot < len(self._sorted) and int(self._sorted[slot]) == key
        if is_old or key in self._recent:
            return False
        self._recent.add(key)
        if len(self._recent) > max(MAX_RECENT, len(self._sorted) // 16):
            self._sorted = np.union1d(self._sorted, np.array(list(self._recent), dtype=np.uint64))
            self._recent.clear()
        return True


def _listed_before(path: Path | None) -> _Seen:
    """Return the `where` of what an earlier run listed; a half-written last line is passed over."""
    listed = _Seen()
    if path is None or not path.is_file():
        return listed
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                listed.add(json.loads(line)["where"])
            except (ValueError, KeyError, TypeError):
                continue
    return listed
