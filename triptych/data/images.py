"""Encoded bytes to an upright RGB array, for any image that Pillow opens.

Plain JPEG (8 bits, grey or YCbCr, no EXIF rotation) goes through OpenCV, which is about twice as
fast as Pillow at 64 x 64 and gives the same bytes, as both wrap libjpeg-turbo. Everything else
goes through Pillow. Which JPEG is plain, its markers say (ITU-T T.81 annex B): a file is a row of
segments `FF marker length payload`; compressed data follows a scan header and holds no marker but
restarts, because each FF in it is followed by 00.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, UnidentifiedImageError

from triptych.data.records import ImageSource
from triptych.data.skips import ImageProblem, SkipKind

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


__all__ = ["ImageProblem", "decode_image", "image_suffixes"]

# Pillow opens these only with a program or a plug-in beside it, or they are no images.
UNDECODED_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})

RGBArray = npt.NDArray[np.uint8]

EXIF_ORIENTATION = 0x0112
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ALPHA_MODES = {"RGBA", "LA", "PA", "La", "RGBa"}
# Each format's magic bytes, and what a whole file has near its end.
END_MARKS = ((b"\xff\xd8\xff", b"\xff\xd9"), (b"\x89PNG\r\n\x1a\n", b"IEND"), (b"GIF8", b"\x3b"))


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of files that this Pillow decodes, in lower case: `.jpg`, `.tif`, ..."""
    return frozenset(
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in UNDECODED_FORMATS
    )


def decode_image(source: ImageSource | bytes | Path | str) -> RGBArray:
    """Decode one image.

    Transparency is laid on white. 16-bit grey is scaled by 255 / 65535; 32-bit values are taken as
    0..1 (floats), 0..255 or 0..65535 where they fit, and stretched from their smallest to their
    largest otherwise. Of an animation the first frame is taken. The EXIF orientation is applied.
    Colour profiles are not.

    Args:
        source: Where the bytes lie, the bytes themselves, or a path.

    Returns:
        (H, W, 3) uint8, RGB, contiguous and writable.

    Raises:
        ImageProblem: The image is missing, cut short, no image, or has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`; `kind` says which.
    """
    if isinstance(source, bytes):
        data, name = source, "<bytes>"
    else:
        if not isinstance(source, ImageSource):
            source = ImageSource(str(source))
        data, name = source.read(), str(source)
    if not data:
        raise ImageProblem(SkipKind.TRUNCATED, f"{name}: is empty (0 bytes)")
    header = read_jpeg_header(data)
    if header is not None:
        _check_pixels(header.width, header.height, name)
        if header.is_plain:
            decoded = _decode_plain_jpeg(data, header)
            if decoded is not None:
                return decoded
    with _quiet():
        return _decode_with_pillow(data, name, header)


def _decode_plain_jpeg(data: bytes, header: JpegHeader) -> RGBArray | None:
    """Return the image, or None where Pillow has to say what is wrong with it."""
    if not header.has_end:  # OpenCV 4 fills the rest of a cut file with grey and says nothing
        return None
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        bgr = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error:
        return None
    if bgr is None or bgr.shape[:2] != (header.height, header.width):
        return None
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _decode_with_pillow(data: bytes, name: str, header: JpegHeader | None) -> RGBArray:
    if header is not None and header.is_cut_and_padded:
        raise ImageProblem(SkipKind.TRUNCATED, f"{name}: the JPEG data ends in zeros")
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_pixels(image.width, image.height, name)
            image.load()
            return np.array(_upright(_to_rgb(image), _orientation(image)))
    except ImageProblem:
        raise
    except Image.DecompressionBombError as error:
        raise ImageProblem(SkipKind.DECOMPRESSION_BOMB, f"{name}: {error}") from error
    except Exception as error:  # Pillow's plugins raise many kinds on broken bytes
        raise _problem(data, name, error) from error


def _check_pixels(width: int, height: int, name: str) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ImageProblem(
            SkipKind.DECOMPRESSION_BOMB,
            f"{name}: claims {width} x {height} pixels, more than the {limit} that are allowed",
        )


def _problem(data: bytes, name: str, error: Exception) -> ImageProblem:
    """Return what an exception of Pillow means for these bytes."""
    unknown = isinstance(error, UnidentifiedImageError)  # its text names an object in memory
    if is_cut_short(data) or "truncated" in str(error).lower():
        why = "" if unknown else f": {error}"
        message = f"{name}: the file is cut short ({len(data)} bytes){why}"
        return ImageProblem(SkipKind.TRUNCATED, message)
    if unknown:
        message = f"{name}: no image that Pillow knows; it begins with {data[:12]!r}"
        return ImageProblem(SkipKind.NOT_AN_IMAGE, message)
    return ImageProblem(SkipKind.NOT_AN_IMAGE, f"{name}: cannot be decoded: {error}")


def is_cut_short(data: bytes) -> bool:
    """Return whether JPEG, PNG, GIF or WebP bytes lack their end. False for other formats."""
    for magic, end in END_MARKS:
        if data.startswith(magic):
            return end not in data[-64:]
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return len(data) < 8 + int(struct.unpack("<I", data[4:8])[0])
    return False


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where there is none or the block is broken."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # a broken EXIF block must not cost the image
        return 1
    return value if isinstance(value, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    transpose = TRANSPOSES.get(orientation)
    return image if transpose is None else image.transpose(transpose)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_scale_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # None only where the conversion is in place
        return converted
    return image.convert("RGB")


def _scale_to_8_bits(values: npt.NDArray[np.generic]) -> RGBArray:
    """Scale 16- or 32-bit grey values to 0..255 by the rule that `decode_image` states."""
    is_16_bit = values.dtype.kind == "u" and values.dtype.itemsize == 2
    grey = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(grey.min()), float(grey.max())
    if is_16_bit:
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 65535:
        scales = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
        low, high = 0.0, next(scale for scale in scales if high <= scale)
    scaled = (grey - low) * (255.0 / max(high - low, 1e-12))
    return np.rint(scaled).astype(np.uint8)


_quiet_lock = threading.Lock()
_quiet_depth = 0
_quiet_filters = warnings.catch_warnings()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings while any thread decodes: what Pillow warns of is reported by kind.

    `warnings.catch_warnings` swaps filters of the whole process, so that two threads inside it
    could restore them in the wrong order; here the first in saves and the last out restores.
    """
    global _quiet_depth, _quiet_filters
    with _quiet_lock:
        if _quiet_depth == 0:
            _quiet_filters = warnings.catch_warnings()
            _quiet_filters.__enter__()
            warnings.simplefilter("ignore")
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                _quiet_filters.__exit__(None, None, None)
