"""What is kept of each image of a dataset to find copies of it: 1.8 kB on disk, 28 bytes in memory.

A perceptual hash (pHash: the signs of the 63 lowest frequencies of the grey image, relative to
their median; Zauner, 2010) finds images that could be copies, and a small version of the image
decides.
"""

from __future__ import annotations

import tempfile
from array import array
from dataclasses import dataclass
from typing import IO

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 24
"""Height and width of the small version, in pixels."""

GREY_SIDE = 32
HASH_SIDE = 8
BLANK_LEVELS = 2.0
"""An image whose small version has a smaller standard deviation, of 255 levels, shows nothing."""

_MIRRORED = np.where(np.arange(HASH_SIDE) % 2, -1.0, 1.0).astype(np.float32)
_BITS = (1 << np.arange(HASH_SIDE * HASH_SIDE, dtype=np.uint64)).astype(np.uint64)


@dataclass(frozen=True, slots=True)
class Look:
    """What is kept of an image.

    Attributes:
        hash: 64 bits that are nearly equal for images that look alike.
        mirrored: The hash of the image mirrored left to right.
        small: (24, 24, 3) uint8.
        is_blank: Whether nearly all of it has one colour.
    """

    hash: int
    mirrored: int
    small: NDArray[np.uint8]
    is_blank: bool


def look_at(image: NDArray[np.uint8]) -> Look:
    """Return what is kept of an image (H, W, 3) uint8."""
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, (GREY_SIDE, GREY_SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(grey.astype(np.float32))[:HASH_SIDE, :HASH_SIDE]
    deviation = float(small.reshape(-1, 3).std(axis=0).max())
    return Look(
        _hash(np.asarray(low, dtype=np.float32)),
        _hash(np.asarray(low * _MIRRORED, dtype=np.float32)),
        np.asarray(small, dtype=np.uint8),
        deviation < BLANK_LEVELS,
    )


def _hash(low: NDArray[np.float32]) -> int:
    flat = low.ravel()
    bits = flat > np.median(flat[1:])  # the first is the mean brightness
    return int(_BITS[bits].sum())


class Looks:
    """The looks of many images, the small versions in a temporary file.

    Use it in a `with` statement, which removes the file.
    """

    def __init__(self) -> None:
        self._hashes, self._mirrored = array("Q"), array("Q")
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="triptych-looks-")  # noqa: SIM115

    def __enter__(self) -> Looks:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, look: Look) -> None:
        """Keep the look of the next image."""
        self._hashes.append(look.hash)
        self._mirrored.append(look.mirrored)
        self._file.write(look.small.tobytes())

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """(N,) hashes."""
        return np.frombuffer(self._hashes, dtype=np.uint64)

    @property
    def mirrored(self) -> NDArray[np.uint64]:
        """(N,) hashes of the images mirrored left to right."""
        return np.frombuffer(self._mirrored, dtype=np.uint64)

    def small(self) -> NDArray[np.uint8]:
        """Return (N, 24, 24, 3) uint8, mapped from the file."""
        shape = (len(self), SIDE, SIDE, 3)
        if not len(self):
            return np.zeros(shape, np.uint8)
        self._file.flush()
        return np.memmap(self._file, dtype=np.uint8, mode="r", shape=shape)
