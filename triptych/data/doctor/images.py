"""The distinct images and clips of a dataset, each decoded once, and what is wrong with them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from triptych.data.doctor.findings import NUM_EXAMPLES, Finding, FindingKind
from triptych.data.doctor.looks import Look, Looks, look_at
from triptych.data.doctor.near import Pairs, groups_of, near_pairs
from triptych.data.images import decode_image
from triptych.data.records import ImageSource, Record
from triptych.data.skips import ImageProblem
from triptych.data.stats import name_digest
from triptych.data.video import decode_frames

NUM_FRAMES = 8  # of a clip that are decoded
CHUNK = 256  # images handed to the threads at a time
DIGEST_BYTES = 16
TINY_PX = 32
EXTREME_RATIO = 3.0


@dataclass(frozen=True, slots=True)
class SeenImage:
    """What is kept of one image or clip: its size and a hash of its content, or its problem."""

    width: int = 0
    height: int = 0
    digest: bytes = b""
    problem: ImageProblem | None = None


class Images:
    """The distinct images and clips that records show, in their order.

    About 200 bytes of each are kept in memory, and its small version in a temporary file: use it in
    a `with` statement.
    """

    def __init__(self) -> None:
        self.looks = Looks()
        self._place: dict[int, int] = {}
        self._first_row = array("q")
        self._shown_rows, self._shown = array("q"), array("q")
        self._width, self._height = array("l"), array("l")
        self._digests = bytearray()
        self._looked_at, self._blank = array("q"), array("q")
        self._problems: dict[int, ImageProblem] = {}

    def __enter__(self) -> Images:
        return self

    def __exit__(self, *error: object) -> None:
        self.looks.__exit__(*error)

    def __len__(self) -> int:
        return len(self._width)

    def __getitem__(self, source: ImageSource | str) -> SeenImage:
        place = self.place(source)
        problem = self._problems.get(place)
        return SeenImage(self._width[place], self._height[place], self._digest(place), problem)

    def place(self, source: ImageSource | str) -> int:
        """Return the number of an image."""
        return self._place[name_digest(str(source))]

    def look_at(
        self,
        records: Sequence[Record],
        num_threads: int,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Decode each distinct image and clip once.

        Args:
            records: All records.
            num_threads: Images decoded at the same time.
            on_progress: Called with the records whose images are done and all records.
        """
        new = self._new(records)
        with ThreadPoolExecutor(max(1, num_threads)) as pool:
            while chunk := list(islice(new, CHUNK)):
                shown = [source for _, source in chunk]
                for (row, _), found in zip(chunk, pool.map(_look_at_one, shown), strict=True):
                    self._add(row, *found)
                if on_progress is not None:
                    on_progress(chunk[-1][0] + 1, len(records))

    def _new(self, records: Iterable[Record]) -> Iterator[tuple[int, ImageSource | str]]:
        for row, record in enumerate(records):
            for source in shown_by(record):
                number_known = len(self._place)
                place = self._place.setdefault(name_digest(str(source)), number_known)
                self._shown_rows.append(row)
                self._shown.append(place)
                if place == number_known:
                    yield row, source

    def _add(self, row: int, seen: SeenImage, look: Look | None) -> None:
        place = len(self._width)
        self._first_row.append(row)
        self._width.append(seen.width)
        self._height.append(seen.height)
        self._digests += seen.digest.ljust(DIGEST_BYTES, b"\0")
        if seen.problem is not None:
            self._problems[place] = seen.problem
        if look is None:
            return
        if look.is_blank:
            self._blank.append(place)
        else:
            self._looked_at.append(place)
            self.looks.add(look)

    @property
    def good(self) -> NDArray[np.int64]:
        """Numbers of the images that decode."""
        return np.array([n for n in range(len(self)) if n not in self._problems], dtype=np.int64)

    @property
    def widths(self) -> NDArray[np.int64]:
        """(N,) widths in pixels, upright; 0 of an image that does not decode."""
        return np.array(self._width, dtype=np.int64)

    @property
    def heights(self) -> NDArray[np.int64]:
        """(N,) heights in pixels, upright."""
        return np.array(self._height, dtype=np.int64)

    def copies(self) -> list[list[int]]:
        """Return the groups of images with the same bytes, each in order."""
        good = self.good
        whole = np.frombuffer(bytes(self._digests), dtype=f"V{DIGEST_BYTES}")[good]
        _, inverse, counts = np.unique(whole, return_inverse=True, return_counts=True)
        groups: dict[int, list[int]] = {}
        for number, group in zip(good.tolist(), inverse.tolist(), strict=True):
            if counts[group] > 1:
                groups.setdefault(group, []).append(number)
        return list(groups.values())

    def name(self, place: int, records: Sequence[Record]) -> str:
        """Return the name of an image."""
        shown = shown_by(records[self._first_row[place]])
        return str(next(source for source in shown if self.place(source) == place))

    def near_copies(self, against: Images | None = None) -> Pairs:
        """Return pairs (P, 2) of numbers of images that show the same; see `near.near_pairs`."""
        pairs = near_pairs(self.looks, None if against is None else against.looks)
        ours, theirs = (
            np.array(images._looked_at, dtype=np.int64) for images in (self, against or self)
        )
        return np.stack([ours[pairs[:, 0]], theirs[pairs[:, 1]]], axis=1)

    def findings(self, records: Sequence[Record], copies: Sequence[Sequence[int]]) -> list[Finding]:
        """Return what is wrong with the images, compared with each other.

        Args:
            records: All records.
            copies: What `copies` returns.
        """
        same = {tuple(sorted((group[0], other))) for group in copies for other in group[1:]}
        near = [pair for pair in self.near_copies().tolist() if tuple(pair) not in same]
        bytes_twice = {number for group in copies for number in group[1:]}
        groups = groups_of(np.array(near, dtype=np.int64).reshape(-1, 2))
        groups = [[n for n in group if n not in bytes_twice] for group in groups]
        width, height = self.widths, self.heights
        good = np.zeros(len(self), dtype=bool)
        good[self.good] = True
        short, long = np.minimum(width, height), np.maximum(width, height)
        alone = {
            FindingKind.BLANK_IMAGE: self._blank.tolist(),
            FindingKind.TINY_IMAGE: np.flatnonzero(good & (short < TINY_PX)).tolist(),
            FindingKind.EXTREME_SHAPE: np.flatnonzero(
                good & (long > EXTREME_RATIO * short)
            ).tolist(),
        }
        found: dict[FindingKind, Sequence[Sequence[int]]] = {
            FindingKind.COPIED_IMAGE: copies,
            FindingKind.NEAR_COPY: [group for group in groups if len(group) > 1],
        }
        found |= {kind: [[number] for number in numbers] for kind, numbers in alone.items()}
        return [self.finding(kind, group, records) for kind, group in found.items() if group]

    def leaks(self, other: Images, records: Sequence[Record]) -> Finding | None:
        """Return which images are also among others, by their bytes or by what they show."""
        names = {other._digest(number) for number in other.good.tolist()}
        same = {n for n in self.good.tolist() if self._digest(n) in names}
        same |= set(self.near_copies(other)[:, 0].tolist())
        if not same:
            return None
        return self.finding(FindingKind.LEAKED_IMAGE, [[n] for n in sorted(same)], records)

    def _digest(self, number: int) -> bytes:
        return bytes(self._digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES])

    def finding(
        self, kind: FindingKind, groups: Sequence[Sequence[int]], records: Sequence[Record]
    ) -> Finding:
        """Return the finding of groups of images; all but the first of a group are meant."""
        meant = {n for group in groups for n in (group[1:] if len(group) > 1 else group)}
        rows = np.array(self._shown_rows)[np.isin(self._shown, list(meant))]
        groups = [group[:2] for group in groups[:NUM_EXAMPLES]]
        shown = [tuple(self._first_row[n] for n in group) for group in groups]
        words = (" and ".join(self.name(n, records) for n in group) for group in groups)
        return Finding(
            kind, len(meant), len(self), tuple(np.unique(rows).tolist()), tuple(shown), tuple(words)
        )


def shown_by(record: Record) -> tuple[ImageSource | str, ...]:
    """Return the images of a record, or its clip, which training takes where there is no image."""
    images = record.all_images()
    return images if images or record.video is None else (record.video,)


def _look_at_one(source: ImageSource | str) -> tuple[SeenImage, Look | None]:
    try:
        if isinstance(source, str):
            frames = decode_frames(source, NUM_FRAMES)
            digest = hashlib.blake2b(frames.tobytes(), digest_size=DIGEST_BYTES).digest()
            look = look_at(frames[len(frames) // 2])
            return SeenImage(frames.shape[2], frames.shape[1], digest), look
        data = source.read()
        image = decode_image(data)
    except ImageProblem as problem:
        return SeenImage(problem=problem), None
    digest = hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
    return SeenImage(image.shape[1], image.shape[0], digest), look_at(image)
