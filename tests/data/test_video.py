"""Frames of clips: which ones, from which formats, and what is said of broken ones.

The independent source is a decode of the whole clip from its first frame on.
"""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from triptych.data import video
from triptych.data.skips import ImageProblem, SkipKind
from triptych.data.video import decode_frames, frame_positions

CODECS = {
    "a.mp4": ("libx264", {"g": "5", "bf": "2"}),
    "one_keyframe.mp4": ("libx264", {"g": "250"}),
    "a.mkv": ("libx264", {"g": "5"}),
    "a.avi": ("mpeg4", {"bf": "2", "g": "6"}),
    "a.webm": ("libvpx-vp9", {}),
    "a.mpg": ("mpeg2video", {"bf": "2"}),
    "a.ts": ("libx264", {"g": "5"}),
    "a.h264": ("libx264", {"g": "5"}),  # a stream without times
}


def paint(count=23, height=32, width=48):
    frames = np.full((count, height, width, 3), 40, dtype=np.uint8)
    for number, frame in enumerate(frames):
        frame[8:24, number : number + 16] = (250, 10 * number, 0)
    return frames


def write(path, frames, codec="libx264", options=None, times_ms=None):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", options or {}
        if times_ms is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number, frame in enumerate(frames):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times_ms is not None:
                image.pts, image.time_base = times_ms[number], Fraction(1, 1000)
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return path


def whole(path):
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clips") / "a.mp4", paint(), options={"g": "5"})


@pytest.mark.parametrize(
    ("total", "num_frames", "expected"),
    [(10, 4, [0, 2, 5, 7]), (8, 8, [*range(8)]), (3, 6, [0, 0, 1, 1, 2, 2]), (1, 3, [0, 0, 0])],
)
def test_positions_are_those_of_the_released_evaluations(total, num_frames, expected):
    released = np.arange(0, total, total / num_frames).astype(int)[:num_frames].tolist()
    assert frame_positions(total, num_frames) == expected == released


@pytest.mark.parametrize("name", CODECS)
def test_frames_equal_those_of_a_whole_decode(tmp_path, name):
    codec, options = CODECS[name]
    path = write(tmp_path / name, paint(), codec, options)
    every = whole(path)
    assert len(every) == 23
    for num_frames in (1, 4, 8, 30):
        found = decode_frames(str(path), num_frames)
        assert np.array_equal(found, every[frame_positions(23, num_frames)])


def test_uneven_times_do_not_matter(tmp_path):
    times = [40 * n if n < 10 else 400 + 333 * (n - 10) for n in range(23)]
    path = write(tmp_path / "v.mp4", paint(), times_ms=times)
    assert np.array_equal(decode_frames(str(path), 5), whole(path)[frame_positions(23, 5)])


def test_only_wanted_frames_are_converted(clip, monkeypatch):
    seen = []
    convert = video._pixels
    monkeypatch.setattr(video, "_pixels", lambda *given: seen.append(given) or convert(*given))
    assert len(decode_frames(str(clip), 4)) == len(seen) == 4


def test_a_name_says_nothing_and_a_clip_may_have_one_frame(tmp_path):
    path = write(tmp_path / "a.mp4", paint(1)).rename(tmp_path / "a.jpg")
    found = decode_frames(str(path), 3)
    assert found.shape == (3, 32, 48, 3) and np.array_equal(found[0], found[2])


def test_a_rotation_that_the_file_asks_for_is_applied(clip, tmp_path):
    data = bytearray(clip.read_bytes())
    matrix = data.index(b"tkhd") + 44  # ISO/IEC 14496-12, 8.3.2: nine numbers of 32 bits
    one = 1 << 16
    quarter = (0, one, 0, -one, 0, 0, 32 * one, 0, 1 << 30)  # clockwise
    data[matrix : matrix + 36] = struct.pack(">9i", *quarter)
    (tmp_path / "turned.mp4").write_bytes(data)
    found = decode_frames(str(tmp_path / "turned.mp4"), 2)
    assert np.array_equal(found, np.rot90(decode_frames(str(clip), 2), -1, axes=(1, 2)))


def sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for number in range(4):
            silence = np.zeros((1, 1024), dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.rate, frame.pts = 16000, 1024 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def first_chunk_at_the_start(clip, path):
    """Return a copy whose index lies before its frames, so that a cut leaves it readable."""
    with (
        av.open(str(clip)) as given,
        av.open(str(path), "w", options={"movflags": "faststart"}) as made,
    ):
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
    return path.read_bytes()


def test_broken_clips_say_what_is_wrong(clip, tmp_path):
    data = clip.read_bytes()
    fast = first_chunk_at_the_start(clip, tmp_path / "fast.mp4")
    avi = write(tmp_path / "x.avi", paint(), "mpeg4").read_bytes()
    mkv = write(tmp_path / "x.mkv", paint()).read_bytes()
    playlist = f"#EXTM3U\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n".encode()
    stream = b"v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    half, most = len(data) // 2, len(fast) * 7 // 10
    broken = {
        "empty": (b"", SkipKind.TRUNCATED),
        "text": (b"no clip at all", SkipKind.NOT_A_CLIP),
        "sound": (sound(tmp_path / "s.mp4"), SkipKind.NOT_A_CLIP),
        "playlist": (playlist, SkipKind.NOT_A_CLIP),
        "session": (stream, SkipKind.NOT_A_CLIP),
        "cut": (data[:half], SkipKind.TRUNCATED),
        "cut_fast": (fast[:most], SkipKind.TRUNCATED),
        "cut_avi": (avi[: len(avi) // 2], SkipKind.TRUNCATED),
        "cut_mkv": (mkv[: len(mkv) // 2], SkipKind.TRUNCATED),
        "zeros": (fast[:most] + bytes(len(fast) - most), SkipKind.NOT_A_CLIP),
    }
    for name, (content, kind) in broken.items():
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(content)
        with pytest.raises(ImageProblem) as caught:
            decode_frames(str(path), 8)
        assert (name, caught.value.kind) == (name, kind)
        assert str(path) in str(caught.value)
    assert len(decode_frames(str(tmp_path / "fast.mp4"), 8)) == 8  # whole, it is read


@pytest.mark.parametrize(
    ("name", "kind"),
    [("none.mp4", SkipKind.MISSING_FILE), ("", SkipKind.UNREADABLE), ("a\0b", SkipKind.UNREADABLE)],
)
def test_files_that_are_not_there(tmp_path, name, kind):
    with pytest.raises(ImageProblem) as caught:
        decode_frames(f"{tmp_path}/{name}", 2)
    assert caught.value.kind is kind


def test_a_frame_of_too_many_pixels_is_not_decoded(clip, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 32 * 48 - 1)
    with pytest.raises(ImageProblem, match="claims 48 x 32 pixels") as caught:
        decode_frames(str(clip), 2)
    assert caught.value.kind is SkipKind.DECOMPRESSION_BOMB
