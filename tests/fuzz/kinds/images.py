"""Images of every format and depth, masks and clips: one is changed and decoded in every way."""

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fuzz.kind import Kind
from tests.fuzz.mutators import changed, mutate_bytes, special, whole
from triptych.core.errors import TriptychError
from triptych.data.images import decode_image, decode_to_shrink
from triptych.data.masks import decode_mask
from triptych.data.records import ImageSource
from triptych.data.shards import shrink
from triptych.data.video import decode_frames
from triptych.serving.inputs import is_clip, read_image


def _picture(width: int = 24, height: int = 16) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    bands = [rows * 13 % 256, columns * 9 % 256, (rows * columns) % 256]
    return Image.fromarray(np.stack(bands, 2).astype(np.uint8))


def _build(folder: Path) -> None:
    rgb = _picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = np.asarray(rgb)[..., 0].astype(np.uint16) * 257
    rgb.save(folder / "plain.jpg", quality=80)
    rgb.save(folder / "rotated.jpg", exif=exif)
    rgb.save(folder / "progressive.jpg", progressive=True)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("L").save(folder / "mask.png")
    rgb.convert("P").save(folder / "palette.png", transparency=3)
    rgb.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(wide).save(folder / "16.png")
    Image.fromarray(wide).save(folder / "16.tif")
    Image.fromarray(np.asarray(rgb)[..., 1].astype(np.float32)).save(folder / "float.tif")
    rgb.convert("LAB").save(folder / "lab.tif", compression="tiff_lzw")
    rgb.save(folder / "deflated.tif", compression="tiff_deflate")
    rgb.save(folder / "a.gif", save_all=True, append_images=[_picture(24, 16)])
    for suffix in ("bmp", "ppm", "tga", "webp", "ico", "pcx", "sgi", "dds", "im", "jp2", "avif"):
        try:
            rgb.save(folder / f"a.{suffix}")
        except (OSError, ValueError, KeyError):  # a Pillow without this codec
            (folder / f"a.{suffix}").unlink(missing_ok=True)
    _clip(folder / "a.mp4")
    _clip(folder / "a.avi")


def _clip(path: Path) -> None:
    import av

    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(np.asarray(_picture(32, 16)) // (number + 1))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _chunk(name: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def _png(width: int, height: int, depth: int, colour: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _hostile(rng: random.Random) -> bytes:
    """Return a small file that claims or holds much."""
    side = rng.choice((1, 9000, 30_000, 65_000, 2**31 - 1))
    how = rng.randint(0, 6)
    zeros = zlib.compress(bytes(1 << 22), 9)
    if how == 0:
        return _png(side, side, 16, rng.choice((0, 2, 6)), zeros)
    if how == 1:  # more pixels than the header says
        return _png(4, 4, 8, 2, zeros)
    if how == 2:  # texts that unpack to much
        text = b"a\0\0" + zlib.compress(bytes(1 << 26), 9)
        data = _png(4, 4, 8, 0, zlib.compress(bytes(20)))
        return data[:33] + _chunk(b"zTXt", text) * 8 + data[33:]
    if how == 3:
        return b"P6\n%d %d\n255\n" % (side, side) + bytes(100)
    if how == 4:
        return b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(40)
    buffer = io.BytesIO()
    _picture().save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    if how == 5:  # the size of a JPEG's frame
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", min(side, 65_535), min(side, 65_535))
        return bytes(data)
    return (
        bytes(data[:2]) + b"\xff\xe1\xff\xff" + b"Exif\0\0II*\0" + bytes(65_521) + bytes(data[2:])
    )


def _use(folder: Path) -> None:
    refused = None
    for path in sorted(folder.iterdir()):
        source = ImageSource(str(path))
        for read in (
            lambda path=path: decode_image(path),
            lambda path=path: decode_to_shrink(path),
            lambda source=source: decode_mask(source),
            lambda source=source: shrink(source.read(), 8),
            lambda path=path: decode_frames(str(path), 3),
            lambda path=path: None if is_clip(path) else read_image(path),
        ):
            try:
                read()
            except TriptychError as error:
                refused = error
    if refused is not None and len(list(folder.iterdir())) == 1:
        raise refused


def _of_one(mutate):
    def only(rng: random.Random, folder: Path) -> None:
        paths = sorted(folder.iterdir())
        if not paths:
            return
        kept = rng.choice(paths)
        for path in paths:
            if path != kept:
                path.unlink()
        mutate(rng, folder)

    return only


KINDS = [
    Kind(
        name="images",
        build=_build,
        mutators=[
            *[_of_one(changed("*", mutate_bytes))] * 6,
            _of_one(special()),
            _of_one(whole("*", _hostile)),
        ],
        use=_use,
    )
]
