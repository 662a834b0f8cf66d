"""Hold out a share of the images: by a hash of what each is called, so that it is always the same.

Two files with the same content but different names count as two images.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from triptych.core.config import check
from triptych.core.errors import DataError
from triptych.data.records import ImageSource, Record, SelectedRecords

NAME_PARTS = 2
"""Last parts of a path that name an image: a data set may lie in another folder on resume."""

MAX_LOOKED_AT = 65_536
"""Records that are looked at for images on both sides, where the user divided them."""

TEXT_FIELDS = ("text", "caption", "premise", "statement", "hypothesis", "question")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A data set in two parts that have no image in common.

    Attributes:
        train: The records to train on.
        held_out: The records of the held-out images.
        num_images: How many images are held out; of records without images, how many texts.
        total_images: How many there are.
    """

    train: Sequence[Record]
    held_out: Sequence[Record]
    num_images: int
    total_images: int


def hold_out(parts: Sequence[Sequence[Record]], share: float, where: str) -> list[HeldOut]:
    """Divide data sets by their images.

    An image is held out if the hash of its name is among the lowest `share` of all hashes: neither
    the order of records, nor other images, nor the number of processes matter. Images that one
    record shows together, directly or through others, stay together. A record without an image goes
    by its clip or its text.

    Args:
        parts: The data sets; an image that several have is on one side in each.
        share: Expected share of the images that is held out, above 0 and below 1.
        where: What the data is called in messages.

    Raises:
        ConfigError: The share is out of range.
        DataError: Nothing, or everything, is held out.
    """
    check(0 < share < 1, "data.val_share", share, "be above 0 and below 1")
    groups = _Groups()
    for records in parts:
        for record in records:
            if record.image is None and len(record.images) > 1:
                groups.join([image_name(source) for source in record.images])
    found = [_divide(records, share, groups) for records in parts]
    held = sum(len(part.held_out) for part in found)
    if held and all(len(part.train) for part in found):
        return found
    total = sum(part.total_images for part in found)
    which = "none of them" if not held else "all images of a source"
    raise DataError(
        f"data.val_share = {share:g} of the {total} images of {where} holds out {which}: "
        "choose another share, or name held-out data with --data.val PATH"
    )


def count_shared(train: Sequence[Record], held_out: Sequence[Record]) -> int:
    """Return how many images of held-out records are trained on; 0 for too many to look at."""
    if len(train) > MAX_LOOKED_AT:
        return 0
    held = {str(image) for record in held_out for image in record.all_images()}
    return len(held & {str(image) for record in train for image in record.all_images()})


def _divide(records: Sequence[Record], share: float, groups: _Groups) -> HeldOut:
    rows = array("q"), array("q")
    names: tuple[set[int], set[int]] = set(), set()
    for row, record in enumerate(records):
        shown = [image_name(image) for image in record.all_images()]
        shown = shown or [_name_without_image(record)]
        side = int(_hash(groups.of(shown[0])) < share * 2**64)
        rows[side].append(row)
        names[side].update(map(_hash, shown))
    kept, held = (SelectedRecords(records, part) for part in rows)
    return HeldOut(kept, held, len(names[1]), len(names[0]) + len(names[1]))


def image_name(source: ImageSource) -> str:
    """Return what tells an image from others, wherever its data set lies.

    The end of its path; in a shard or a table also its place there.
    """
    tail = _tail(source.path)
    return tail if source.member is None else f"{tail}::{source.member}"


def _name_without_image(record: Record) -> str:
    if record.video is not None:
        return _tail(record.video)
    texts = [getattr(record, field) for field in TEXT_FIELDS]
    return "text " + " ".join(" ".join(text.lower().split()) for text in texts if text)


def _tail(path: str) -> str:
    return "/".join(path.replace("\\", "/").split("/")[-NAME_PARTS:])


def _hash(name: str) -> int:
    """Return 64 bits of a name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


class _Groups:
    """Images that records show together; each group goes by the first of its names by alphabet."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def of(self, name: str) -> str:
        while (above := self._above.get(name, name)) != name:
            self._above[name] = self._above.get(above, above)  # halves the way for the next time
            name = above
        return name

    def join(self, names: Sequence[str]) -> None:
        roots = sorted({self.of(name) for name in names})
        for root in roots[1:]:
            self._above[root] = roots[0]
