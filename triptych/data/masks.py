"""Masks: the class of each pixel of an image, and what the classes are called.

A mask is an image of one channel, mostly a PNG, as large as its image; a palette is ignored. Its
values are the numbers of classes, and `IGNORED` stands for pixels that count neither in training
nor in scores.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from triptych.core.errors import DataError
from triptych.core.reading import read_text
from triptych.data.images import check_pixels, max_image_pixels, quiet
from triptych.data.records import ImageSource, Record
from triptych.data.skips import ImageProblem, SkipKind

IGNORED = 255
"""Class number of pixels that are ignored; at most so many classes can be told apart."""

MAX_LOOKED_AT = 2000
"""Masks that are opened to count the classes of data that names none."""

ADE20K_NAMES = "objectInfo150.txt"
NAMES_FILE = "classes.txt"

ClassMap = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class MaskClasses:
    """What the values of masks mean.

    Attributes:
        names: The classes, in the order of their numbers.
        zero_is_ignored: Whether value 0 is ignored and class k has the value k + 1, as in ADE20K.
    """

    names: tuple[str, ...]
    zero_is_ignored: bool = False

    def numbers(self, values: ClassMap, source: ImageSource) -> ClassMap:
        """Return the class numbers of a mask's values; `IGNORED` where a pixel is ignored.

        Args:
            values: (H, W) as `decode_mask` returns them.
            source: For messages.

        Raises:
            ImageProblem: A value is of no class.
        """
        ignored = values == IGNORED
        numbers = values - 1 if self.zero_is_ignored else values
        if self.zero_is_ignored:
            ignored |= values == 0
        known = ignored | (numbers < len(self.names))
        if not known.all():
            message = (
                f"{source}: value {int(values[~known].max())} is of no class: there are "
                f"{len(self.names)}, and {IGNORED} is ignored; name all classes in task.classes"
            )
            raise ImageProblem(SkipKind.BAD_LABEL, message)
        return np.where(ignored, IGNORED, numbers).astype(np.int32)

    def values(self, numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the values of a mask with these class numbers: the other way round."""
        return numbers + np.uint8(self.zero_is_ignored)


def decode_mask(source: ImageSource) -> ClassMap:
    """Return the values (H, W) of a mask.

    Raises:
        ImageProblem: It is missing, cannot be decoded, or has several channels.
    """
    data = source.read()
    try:
        limit = max_image_pixels()
        with quiet(limit), Image.open(io.BytesIO(data)) as image:
            check_pixels(image.width, image.height, str(source), limit)
            image.load()
            mode, values = image.mode, np.asarray(image)
    except ImageProblem:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds on broken bytes
        message = f"{source}: the mask cannot be decoded: {error}"
        raise ImageProblem(SkipKind.NOT_AN_IMAGE, message) from error
    if values.ndim != 2 or values.dtype.kind not in "biu":
        message = (
            f"{source}: the mask is an image of mode {mode}: save the number of each pixel's class "
            "as one channel, such as a grey PNG"
        )
        raise ImageProblem(SkipKind.BAD_RECORD, message)
    return values.astype(np.int32)


def check_mask_size(values: ClassMap, width: int, height: int, source: ImageSource) -> None:
    """Reject a mask that is not as large as its image.

    Raises:
        ImageProblem: It has another width or height.
    """
    if values.shape != (height, width):
        message = (
            f"{source}: the mask is {values.shape[1]} x {values.shape[0]} pixels, its image "
            f"{width} x {height}"
        )
        raise ImageProblem(SkipKind.BAD_RECORD, message)


def find_classes(records: Sequence[Record]) -> MaskClasses:
    """Return the classes of masks, from the names beside them, or else from their values.

    In the folder of the first mask, or one or two above it, ADE20K has `objectInfo150.txt`; your
    own data may have `classes.txt`, one name a line in the order of the values. Without either the
    values of up to 2,000 masks are looked at, and the names are numbers.

    Raises:
        DataError: No record has a mask, a file of names is broken, or there is one class alone.
    """
    sources = [record.mask for record in records if record.mask is not None]
    if not sources:
        raise DataError("no record has a mask: give each its PNG of classes in the field mask")
    found = _named(Path(sources[0].path)) or _counted(sources)
    if not 2 <= len(found.names) <= IGNORED:
        raise DataError(
            f"the masks have {len(found.names)} classes: must be from 2 to {IGNORED} (value "
            f"{IGNORED} is ignored)"
        )
    return found


def _named(mask: Path) -> MaskClasses | None:
    for folder in list(mask.parents)[:3]:
        if (folder / ADE20K_NAMES).is_file():
            return MaskClasses(_ade20k_names(folder / ADE20K_NAMES), zero_is_ignored=True)
        if (folder / NAMES_FILE).is_file():
            lines = read_text(folder / NAMES_FILE).rstrip().splitlines()
            return MaskClasses(distinct_names(map(str.strip, lines), folder / NAMES_FILE))
    return None


def _ade20k_names(path: Path) -> tuple[str, ...]:
    """Read the names of ADE20K's scene parsing classes: the first of the synonyms, if it is alone.

    A line is `Idx, Ratio, Train, Val, Stuff, Name`, separated by tabs, below a heading.
    """
    rows = [line.split("\t") for line in read_text(path).splitlines()]
    rows = [row for row in rows if row and row[0].strip().isdecimal()]
    if [int(row[0]) for row in rows] != list(range(1, len(rows) + 1)) or not rows:
        raise DataError(f"{path}: expected a line for each class, numbered from 1")
    whole = [row[-1].strip() for row in rows]
    first = [name.split(",")[0].strip() for name in whole]
    names = (f if first.count(f) == 1 else w for f, w in zip(first, whole, strict=True))
    return distinct_names(names, path)


def distinct_names(names: Iterable[str], where: Path) -> tuple[str, ...]:
    """Return names of classes.

    Raises:
        DataError: Two are equal, or one is empty.
    """
    found = tuple(names)
    if "" in found:
        raise DataError(f"{where}: class {found.index('')} has no name")
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{where}: two classes are called {twice!r}: give each its own name")
    return found


def _counted(sources: Sequence[ImageSource]) -> MaskClasses:
    step = -(-len(sources) // MAX_LOOKED_AT)
    highest = -1
    for source in islice(sources, 0, None, step):
        try:
            values = decode_mask(source)
        except ImageProblem:  # training counts and lists it
            continue
        highest = max(highest, int(values[values != IGNORED].max(initial=-1)))
    return MaskClasses(tuple(map(str, range(highest + 1))))
