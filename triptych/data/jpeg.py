"""Plain JPEG to RGB at full size, a half, a quarter or an eighth, by the fastest decoder at hand.

simplejpeg (`pip install triptych[jpeg]`), OpenCV and Pillow all wrap libjpeg-turbo and give the
same bytes; `tests/data/test_jpeg.py` compares them. So which of them is installed changes the time
of a run, never what it computes. What is not plain, or not sound, goes through Pillow.

Which JPEG is plain (8 bits, grey or YCbCr), its markers say (ITU-T T.81 annex B): a file is a row
of segments `FF marker length payload`; compressed data follows a scan header and holds no marker
but restarts, because each FF in it is followed by 00.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

RGBArray = npt.NDArray[np.uint8]

START, END, SCAN, EXIF_SEGMENT, ADOBE_SEGMENT = 0xD8, 0xD9, 0xDA, 0xE1, 0xEE
STANDALONE = {0x01, *range(0xD0, 0xD8)}
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
HUFFMAN_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive
ORIENTATION_TAG = 0x0112
SHORT = 3  # a type of TIFF's values
ZERO_TAIL = bytes(64)

FACTORS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
"""By what the sides can be divided while decoding, and OpenCV's flags for it."""
LEAST_REDUCED_SIDE = 16
"""From this on simplejpeg, which is given the size, has one factor that leads to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegHeader:
    """What the markers before the first scan say.

    Attributes:
        width: In pixels, before any rotation.
        height: In pixels, before any rotation.
        orientation: EXIF's, from 1 (upright) to 8; 1 where nothing is said.
        is_plain: 8 bits, grey or YCbCr, Huffman-coded, of a known orientation: any decoder gives
            the same.
        has_end: Whether an end-of-image marker follows the compressed data.
        is_cut_and_padded: No end marker, and zeros instead: an interrupted copy into a file whose
            length was reserved.
    """

    width: int
    height: int
    orientation: int
    is_plain: bool
    has_end: bool
    is_cut_and_padded: bool


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """Return the header of JPEG bytes; None where they are no JPEG or end within the header."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    frame: tuple[int, bytes] | None = None
    is_plain = True
    blocks: list[bytes] = []
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF or marker in STANDALONE:  # fill byte, or a marker without a payload
            position += 1 if marker == 0xFF else 2
            continue
        length = int(struct.unpack_from(">H", data, position + 2)[0])
        payload = data[position + 4 : position + 2 + length]
        if marker in FRAMES:
            frame = (marker, payload)
        elif marker == EXIF_SEGMENT and payload.startswith(b"Exif\0"):
            blocks.append(payload[6:])
        elif marker == ADOBE_SEGMENT and payload.startswith(b"Adobe"):
            is_plain = is_plain and payload[11:12] == b"\x01"  # 1 is YCbCr
        elif marker == SCAN:
            return _header(data, position + 2 + length, frame, blocks, is_plain)
        position += 2 + length
    return None


def _header(
    data: bytes,
    scan_start: int,
    frame: tuple[int, bytes] | None,
    blocks: list[bytes],
    is_plain: bool,
) -> JpegHeader | None:
    if frame is None or len(frame[1]) < 6:
        return None
    marker, (precision, height, width, components) = frame[0], struct.unpack(">BHHB", frame[1][:6])
    has_end = data.rfind(b"\xff\xd9") >= scan_start
    said = [_orientation(block) for block in blocks]
    # several blocks: which one counts is for Pillow to say, unless all agree that nothing turns
    orientation = 1 if all(value == 1 for value in said) else said[0] if len(said) == 1 else None
    return JpegHeader(
        width=width,
        height=height,
        orientation=orientation or 1,
        is_plain=is_plain
        and orientation is not None
        and precision == 8
        and components in (1, 3)
        and marker in HUFFMAN_FRAMES
        and width > 0
        and height > 0,
        has_end=has_end,
        is_cut_and_padded=not has_end and data.endswith(ZERO_TAIL),
    )


def _orientation(tiff: bytes) -> int | None:
    """Return an EXIF block's orientation, 1 to 8; 1 where it says none, None where it is broken."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    try:
        start = int(struct.unpack_from(f"{order}I", tiff, 4)[0])
        count = int(struct.unpack_from(f"{order}H", tiff, start)[0])
        for index in range(count):
            entry = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * index)
            if entry[0] == ORIENTATION_TAG:
                is_known = entry[1:3] == (SHORT, 1) and 1 <= entry[3] <= 8
                return int(entry[3]) if is_known else None
    except struct.error:
        return None
    return 1


def decode_plain_jpeg(data: bytes, header: JpegHeader, factor: int) -> RGBArray | None:
    """Return the stored pixels, not turned upright; None where Pillow has to say what is wrong.

    Args:
        data: The file.
        header: Its header, which is plain.
        factor: By what both sides are divided, of `FACTORS`; sides are rounded up.

    Returns:
        (H, W, 3) uint8, RGB, contiguous and writable.
    """
    if not header.has_end:  # decoders fill the rest of a cut file with grey, some without a word
        return None
    height, width = -(-header.height // factor), -(-header.width // factor)
    simple = _simplejpeg()
    if simple is not None and (factor == 1 or min(height, width) >= LEAST_REDUCED_SIDE):
        least = {} if factor == 1 else {"min_height": height, "min_width": width}
        try:
            found = simple.decode_jpeg(data, "RGB", **least)
        except ValueError:  # a flaw that OpenCV may bear
            found = None
        if found is not None and found.shape == (height, width, 3):
            return np.asarray(found, dtype=np.uint8)
    try:
        encoded = np.frombuffer(data, dtype=np.uint8)
        pixels = cv2.imdecode(encoded, FACTORS[factor] | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    if pixels is None or pixels.shape != (height, width, 3):
        return None
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), dtype=np.uint8)


@cache
def _simplejpeg() -> Any:
    """Return the module simplejpeg, or None where it is not installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg
