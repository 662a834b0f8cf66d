"""What is wrong with captions as a whole: repeated, boilerplate, too long, in another script.

Of each caption about 40 bytes are kept: hashes of its normalised text, of its first and of its last
words, and its script.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from triptych.data.doctor.findings import NUM_EXAMPLES, Finding, FindingKind
from triptych.data.records import Record
from triptych.data.stats import name_digest

EDGE_WORDS = 3
MIN_EDGE_SHARE, MIN_EDGE_COUNT = 0.02, 20
"""Words that so many captions begin or end with are boilerplate."""

COMMON_SCRIPT_SHARE = 0.05
"""Scripts of fewer captions are other ones than the rest's."""


def normalise_text(text: str) -> str:
    """Return a text without case, punctuation and repeated spaces, to find duplicates by."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[^\w\s]|_", " ", plain).split())


@lru_cache(maxsize=65_536)
def _script_of(character: str) -> str | None:
    if not character.isalpha():
        return None
    name = unicodedata.name(character, "")
    return name.split()[0].removesuffix("-") if name else None


def script_of(text: str) -> str | None:
    """Return the script of most letters, such as LATIN or CYRILLIC; None without letters."""
    counts = Counter(filter(None, map(_script_of, text)))
    return counts.most_common(1)[0][0] if counts else None


class Captions:
    """The captions of many records.

    Args:
        length: Of a caption, in what the limit counts.
        limit: Of the model; longer captions are cut off.
    """

    def __init__(self, length: Callable[[str], int], limit: int) -> None:
        self._length, self._limit = length, limit
        self._rows, self._whole = array("q"), array("Q")
        self._starts, self._ends = array("Q"), array("Q")
        self._long = array("q")
        self._scripts: dict[str | None, array[int]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: int, caption: str) -> None:
        """Keep what is needed of a record's caption."""
        plain = normalise_text(caption)
        words = plain.split()
        self._rows.append(row)
        self._whole.append(name_digest(plain))
        has_more = len(words) > EDGE_WORDS
        for kept, edge in ((self._starts, words[:EDGE_WORDS]), (self._ends, words[-EDGE_WORDS:])):
            kept.append(name_digest(" ".join(edge)) if has_more else 0)
        if self._length(caption) > self._limit:
            self._long.append(row)
        self._scripts.setdefault(script_of(caption), array("q")).append(row)

    @property
    def digests(self) -> NDArray[np.uint64]:
        """(N,) hashes of the normalised captions, in the order they were added."""
        return np.frombuffer(self._whole, dtype=np.uint64)

    @property
    def rows(self) -> NDArray[np.int64]:
        """(N,) numbers of their records."""
        return np.frombuffer(self._rows, dtype=np.int64)

    def findings(self, records: Sequence[Record]) -> list[Finding]:
        """Return what is wrong with them, seen together."""
        found = [self._repeated(records), self._boilerplate(records), self._other_scripts(records)]
        if self._long:
            rows = tuple(self._long)
            found.append(self._simple(FindingKind.LONG_CAPTION, rows, records))
        return [finding for finding in found if finding is not None]

    def repeated(self, records: Sequence[Record]) -> dict[str, int]:
        """Return the normalised captions used more than once, with how often, commonest first."""
        counts = Counter(self.digests.tolist())
        found: dict[str, int] = {}
        for row, digest in zip(self.rows.tolist(), self.digests.tolist(), strict=True):
            if counts[digest] > 1:
                found[normalise_text(records[row].caption or "")] = counts.pop(digest)
        return dict(sorted(found.items(), key=lambda entry: -entry[1]))

    def leaks(self, other: Captions, records: Sequence[Record]) -> Finding | None:
        """Return which captions are also among others."""
        rows = self.rows[np.isin(self.digests, other.digests)]
        if not len(rows):
            return None
        return self._simple(FindingKind.LEAKED_CAPTION, tuple(rows.tolist()), records)

    def false_negatives(self, batch: int) -> float:
        """Return the share of captions that meet an equal one in a random batch, 0 to 1."""
        _, inverse, counts = np.unique(self.digests, return_inverse=True, return_counts=True)
        return meeting_share(counts[inverse], batch)

    def _simple(
        self, kind: FindingKind, rows: tuple[int, ...], records: Sequence[Record]
    ) -> Finding:
        shown = tuple((row,) for row in rows[:NUM_EXAMPLES])
        words = tuple(records[row].caption or "" for row in rows[:NUM_EXAMPLES])
        return Finding(kind, len(rows), len(self), rows, shown, words)

    def _repeated(self, records: Sequence[Record]) -> Finding | None:
        _, first, inverse, counts = np.unique(
            self.digests, return_index=True, return_inverse=True, return_counts=True
        )
        repeated = np.flatnonzero(counts > 1)
        if not len(repeated):
            return None
        top = repeated[np.argsort(-counts[repeated], kind="stable")][:NUM_EXAMPLES]
        rows = tuple(self.rows[counts[inverse] > 1].tolist())
        words = (f"{records[int(self.rows[first[n]])].caption!r} {counts[n]:,} times" for n in top)
        shown = tuple(tuple(self.rows[inverse == n][:2].tolist()) for n in top)
        kind = FindingKind.REPEATED_CAPTION
        return Finding(kind, len(rows), len(self), rows, shown, tuple(words))

    def _boilerplate(self, records: Sequence[Record]) -> Finding | None:
        needed = max(MIN_EDGE_COUNT, MIN_EDGE_SHARE * len(self))
        marked = np.zeros(len(self), dtype=bool)
        found: list[tuple[int, int, str]] = []
        for edges, part in ((self._starts, slice(EDGE_WORDS)), (self._ends, slice(-3, None))):
            values = np.frombuffer(edges, dtype=np.uint64)
            distinct, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
            for number in np.flatnonzero((counts >= needed) & (distinct != 0)):
                members = inverse == number
                if not self._varies(members):
                    continue
                marked |= members
                row = int(self.rows[np.argmax(members)])
                edge = " ".join(normalise_text(records[row].caption or "").split()[part])
                place = "begin" if part.start is None else "end"
                found.append((int(counts[number]), row, f"{place} with {edge!r}"))
        if not found:
            return None
        found.sort(key=lambda entry: -entry[0])
        rows = tuple(self.rows[marked].tolist())
        shown = tuple((row,) for _, row, _ in found[:NUM_EXAMPLES])
        words = tuple(f"{count:,} {said}" for count, _, said in found[:NUM_EXAMPLES])
        return Finding(FindingKind.BOILERPLATE, len(rows), len(self), rows, shown, words)

    def _varies(self, members: NDArray[np.bool_]) -> bool:
        """Say whether captions are not just repeated as a whole, which is another finding."""
        whole = self.digests[members]
        return len(np.unique(whole)) > len(whole) / 2

    def _other_scripts(self, records: Sequence[Record]) -> Finding | None:
        total = sum(map(len, self._scripts.values()))
        rare = [
            row
            for script, rows in self._scripts.items()
            if script is not None and len(rows) < COMMON_SCRIPT_SHARE * total
            for row in rows
        ]
        if not rare:
            return None
        return self._simple(FindingKind.OTHER_SCRIPT, tuple(sorted(rare)), records)


def meeting_share(counts: NDArray[np.int64] | Iterable[int], batch: int) -> float:
    """Return the share of samples that meet one of their own group in a random batch.

    Args:
        counts: (N,) how large the group of each sample is, itself included.
        batch: Samples in a batch; at most N are drawn.
    """
    sizes = np.asarray(counts, dtype=np.float64)
    number = len(sizes)
    if number < 2:
        return 0.0
    others = min(batch, number) - 1
    with np.errstate(divide="ignore"):
        alone = others * np.log1p(-(sizes - 1) / (number - 1))
    return float(np.mean(-np.expm1(alone)))
