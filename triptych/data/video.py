"""Frames of a clip through PyAV (FFmpeg): a few, evenly spread, and only those are converted.

The packets are listed first, which decodes nothing: how many frames there are, when each is shown,
and where decoding can begin. Then each group of wanted frames is decoded from its own keyframe on.
A container that is shorter than it says, or frames that cannot be decoded, make the whole clip
unusable, as with images that are cut short.
"""

from __future__ import annotations

import io
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, NoReturn

import numpy as np

from triptych.core.errors import DataError
from triptych.core.extras import import_extra
from triptych.core.reading import open_regular
from triptych.data.images import RGBArray, check_pixels, max_image_pixels
from triptych.data.skips import ImageProblem, SkipKind
from triptych.data.storage import is_url, read_whole

BOX_NAMES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"sidx", b"styp")
"""Names of the boxes that MP4 and QuickTime files begin with."""

FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,ivf,flv,ogg,asf,nut,mxf"
"""FFmpeg's formats that hold a clip in one file: no playlists and no descriptions of streams."""

EBML_ID, SEGMENT_ID = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def frame_positions(total: int, num_frames: int) -> list[int]:
    """Return the first frame of each of `num_frames` equal parts of a clip of `total` frames.

    They are those of the released video evaluations, `arange(0, total, total / num_frames)`; a clip
    of fewer frames shows some of them more than once.
    """
    return [number * total // num_frames for number in range(num_frames)]


def decode_frames(path: str, num_frames: int) -> RGBArray:
    """Decode frames of a clip that are evenly spread by their number.

    A rotation that the container asks for is applied.

    Args:
        path: A file or URL, of any name: its content says what it is.
        num_frames: How many frames.

    Returns:
        (num_frames, H, W, 3) uint8, RGB, in order; see `frame_positions`.

    Raises:
        ImageProblem: The clip is missing, cut short, no clip, or of more pixels a frame than
            are allowed; `kind` says which.
        DataError: PyAV is not installed.
    """
    require_av("reading clips")
    with _opened(path) as file:
        _check_length(file, path)
        with _container(file, path) as container:
            stream = _video_stream(container, path)
            times, keys = _packets(container, stream, path)
            wanted = frame_positions(len(times), num_frames)
            found = _decode(container, stream, times, keys, sorted(set(wanted)), path)
        if not set(wanted) <= found.keys():  # no times, or a seek that went too far
            file.seek(0)
            with _container(file, path) as container:
                found = _count(container, _video_stream(container, path), set(wanted), path)
    if not set(wanted) <= found.keys():
        told = f"only {len(found)} of {len(set(wanted))} frames can be decoded"
        raise ImageProblem(SkipKind.TRUNCATED, f"{path}: is cut short: {told}")
    return np.stack([found[position] for position in wanted])


def require_av(what: str) -> None:
    """Check that PyAV is installed.

    Raises:
        CapabilityError: It is not; the message says how to get it.
    """
    import_extra("av", "video", what)


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    try:
        if is_url(path):
            yield io.BytesIO(read_whole(path))
            return
        with open_regular(path) as file:
            yield file
    except DataError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise ImageProblem(SkipKind.MISSING_FILE, f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageProblem(SkipKind.UNREADABLE, f"{path}: cannot be read: {reason}") from error


@contextmanager
def _container(file: BinaryIO, path: str) -> Iterator[Any]:
    """Open the container; what FFmpeg says of broken bytes becomes a problem of the clip."""
    import av

    try:
        only = {"format_whitelist": FORMATS, "protocol_whitelist": ""}
        with av.open(file, io_open=_refuse, container_options=only) as container:
            yield container
    except av.ArgumentError as error:  # what FFmpeg says of a format outside of the list
        message = f"{path}: is in none of the formats that are read as clips"
        raise ImageProblem(SkipKind.NOT_A_CLIP, message) from error
    except av.FFmpegError as error:
        reason = getattr(error, "strerror", None) or str(error)
        message = f"{path}: no clip that FFmpeg can decode ({reason})"
        raise ImageProblem(SkipKind.NOT_A_CLIP, message) from error


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    """Open no other file: a playlist under a clip's name must not read files or fetch URLs."""
    del flags, options
    raise OSError(f"a clip must not open {url}")


def _video_stream(container: Any, path: str) -> Any:
    from av.stream import Disposition

    covers = Disposition.attached_pic  # the cover of an album, in its sound files
    streams = [s for s in container.streams.video if not s.disposition & covers]
    if not streams:
        raise ImageProblem(SkipKind.NOT_A_CLIP, f"{path}: holds no video, only sound or data")
    stream = streams[0]
    context = stream.codec_context
    if context is None:
        raise ImageProblem(SkipKind.NOT_A_CLIP, f"{path}: FFmpeg knows no decoder for it")
    check_pixels(context.width, context.height, path, max_image_pixels())
    context.thread_count = 1  # the workers of a loader share the cores already
    return stream


def _packets(container: Any, stream: Any, path: str) -> tuple[list[int | None], list[int]]:
    """List the packets: the time of each frame in the order of showing, and the keyframes' times.

    Where one has no time, all times are None and there are no keyframes.
    """
    times: list[int | None] = []
    keys: list[int] = []
    num_packets = 0
    for packet in container.demux(stream):
        if not packet.size:
            continue
        num_packets += 1
        if packet.is_corrupt:
            message = f"{path}: is cut short: the data of frame {num_packets} is not whole"
            raise ImageProblem(SkipKind.TRUNCATED, message)
        if packet.is_discard:  # before the start that an edit list sets
            continue
        times.append(packet.pts)
        if packet.is_keyframe and packet.pts is not None:
            keys.append(packet.pts)
    if not times:
        raise ImageProblem(SkipKind.NOT_A_CLIP, f"{path}: its video has no frame")
    if num_packets < stream.frames:
        message = f"{path}: is cut short: {num_packets} of {stream.frames} frames are there"
        raise ImageProblem(SkipKind.TRUNCATED, message)
    known = [time for time in times if time is not None]
    if len(set(known)) < len(times):
        return [None] * len(times), []
    return [*sorted(known)], sorted(keys)


def _decode(
    container: Any,
    stream: Any,
    times: Sequence[int | None],
    keys: Sequence[int],
    wanted: Sequence[int],
    path: str,
) -> dict[int, RGBArray]:
    """Decode the frames at some positions from the keyframes before them, as far as times tell."""
    found: dict[int, RGBArray] = {}
    groups: dict[int, dict[int, int]] = {}
    for position in wanted:
        time = times[position]
        if time is not None and keys and keys[0] <= time:
            groups.setdefault(keys[bisect_right(keys, time) - 1], {})[time] = position
    for start, positions in groups.items():
        container.seek(start, stream=stream)
        last = max(positions)
        for frame in container.decode(stream):
            if frame.pts in positions:
                found[positions[frame.pts]] = _pixels(frame, stream, path)
            if frame.pts is not None and frame.pts >= last:
                break
    return found


def _count(container: Any, stream: Any, wanted: set[int], path: str) -> dict[int, RGBArray]:
    """Decode from the start, and convert the frames at some positions."""
    found: dict[int, RGBArray] = {}
    last = max(wanted)
    for position, frame in enumerate(container.decode(stream)):
        if position in wanted:
            found[position] = _pixels(frame, stream, path)
        if position == last:
            break
    return found


def _pixels(frame: Any, stream: Any, path: str) -> RGBArray:
    """Return a frame, upright and as large as the others: a stream may change its size."""
    if frame.is_corrupt:
        raise ImageProblem(SkipKind.TRUNCATED, f"{path}: the data of a frame is broken")
    context = stream.codec_context
    pixels = frame.to_ndarray(format="rgb24", width=context.width, height=context.height)
    quarters = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarters))


def _check_length(file: BinaryIO, path: str) -> None:
    """Refuse a container that is shorter than its own headers say: FFmpeg reads what there is.

    MP4 and QuickTime are rows of boxes with their sizes (ISO/IEC 14496-12), AVI is one RIFF chunk,
    Matroska and WebM are an EBML header and a segment (RFC 8794). Other formats have no size.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if not head:
        raise ImageProblem(SkipKind.TRUNCATED, f"{path}: is empty (0 bytes)")
    claimed = size
    if head[4:8] in BOX_NAMES:
        claimed = _end_of_boxes(file, size)
    elif head[:4] == b"RIFF" and len(head) == 12:
        claimed = 8 + int(struct.unpack("<I", head[4:8])[0])
    elif head[:4] == EBML_ID:
        claimed = _end_of_segment(file, size)
    file.seek(0)
    if claimed > size:
        message = f"{path}: is cut short: {size:,} of the {claimed:,} bytes that its headers name"
        raise ImageProblem(SkipKind.TRUNCATED, message)


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    """Return where the last box ends, as far as boxes follow one another."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        if not header[4:8].isalnum():  # no box: something was appended to the file
            return size
        length = int(struct.unpack_from(">I", header)[0])
        if length == 1 and len(header) == 16:  # a size of 64 bits follows
            length = int(struct.unpack_from(">Q", header, 8)[0])
        if length < 8:  # 0: up to the end of the file
            return size
        position += length
    return position


def _end_of_segment(file: BinaryIO, size: int) -> int:
    """Return where the segment ends; the file's own size where it is not told."""
    file.seek(4)
    header = _ebml_number(file)
    if header is None:
        return size
    file.seek(header, io.SEEK_CUR)
    if file.read(4) != SEGMENT_ID:
        return size
    length = _ebml_number(file)
    return size if length is None else file.tell() + length


def _ebml_number(file: BinaryIO) -> int | None:
    """Read a number of 1 to 8 bytes; None for one that is unknown (all ones) or broken."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    num_bytes = 9 - first[0].bit_length()
    rest = file.read(num_bytes - 1)
    mask = (1 << (8 - num_bytes)) - 1
    value = int.from_bytes(bytes([first[0] & mask]) + rest)
    return None if value == (1 << (7 * num_bytes)) - 1 else value
