"""The markers of a JPEG file: size, kind, orientation, and whether its end is there.

ITU-T T.81 annex B: a file is a row of segments `FF marker length payload`; compressed data follows
a scan header and holds no marker but restarts, because each FF in it is followed by 00.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

START, END, SCAN, EXIF_SEGMENT, ADOBE_SEGMENT = 0xD8, 0xD9, 0xDA, 0xE1, 0xEE
STANDALONE = {0x01, *range(0xD0, 0xD8)}
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
HUFFMAN_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive
ORIENTATION_TAG = 0x0112
ZERO_TAIL = bytes(64)


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegHeader:
    """What the markers before the first scan say.

    Attributes:
        width: In pixels, before any rotation.
        height: In pixels, before any rotation.
        is_plain: 8 bits, grey or YCbCr, Huffman-coded, upright: any decoder gives the same.
        has_end: Whether an end-of-image marker follows the compressed data.
        is_cut_and_padded: No end marker, and zeros instead: an interrupted copy into a file whose
            length was reserved.
    """

    width: int
    height: int
    is_plain: bool
    has_end: bool
    is_cut_and_padded: bool


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """Return the header of JPEG bytes; None where they are no JPEG or end within the header."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    frame: tuple[int, bytes] | None = None
    is_plain = True
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
            is_plain = is_plain and _is_upright(payload[6:])
        elif marker == ADOBE_SEGMENT and payload.startswith(b"Adobe"):
            is_plain = is_plain and payload[11:12] == b"\x01"  # 1 is YCbCr
        elif marker == SCAN:
            return _header(data, position + 2 + length, frame, is_plain)
        position += 2 + length
    return None


def _header(
    data: bytes, scan_start: int, frame: tuple[int, bytes] | None, is_plain: bool
) -> JpegHeader | None:
    if frame is None or len(frame[1]) < 6:
        return None
    marker, (precision, height, width, components) = frame[0], struct.unpack(">BHHB", frame[1][:6])
    has_end = data.rfind(b"\xff\xd9") >= scan_start
    return JpegHeader(
        width=width,
        height=height,
        is_plain=is_plain
        and precision == 8
        and components in (1, 3)
        and marker in HUFFMAN_FRAMES
        and width > 0
        and height > 0,
        has_end=has_end,
        is_cut_and_padded=not has_end and data.endswith(ZERO_TAIL),
    )


def _is_upright(tiff: bytes) -> bool:
    """Return whether an EXIF block says orientation 1, or nothing about it. False where broken."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return False
    try:
        start = int(struct.unpack_from(f"{order}I", tiff, 4)[0])
        count = int(struct.unpack_from(f"{order}H", tiff, start)[0])
        for index in range(count):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * index)
            if tag == ORIENTATION_TAG:
                return bool(value == 1)
    except struct.error:
        return False
    return True
