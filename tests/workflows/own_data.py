"""A user's own images: 200 JPEG and PNG files of every kind that Pillow opens, 3 of them bad."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

NUM_LINES = 200
BAD = {
    "bad/cut.jpg": "truncated",
    "bad/letter.jpg": "not_an_image",
    "bad/lost.png": "missing_file",
}
"""Kind of each image that cannot be used, by the path that the manifest gives."""

COLORS = ("red", "green", "blue", "grey")


@dataclass(frozen=True)
class OwnData:
    """What was written: the manifest, and the good images in its order."""

    manifest: Path
    good: list[Path]


def write_own_data(folder: Path) -> OwnData:
    """Write 200 captioned images, each kind equally often, the bad ones spread among them."""
    (folder / "bad").mkdir(parents=True)
    names = [f"{number:03d}_{kind}" for number, kind in enumerate(_names(NUM_LINES - len(BAD)))]
    for number, name in enumerate(names):
        _save(folder / name, number)
    _write_bad(folder, folder / names[0])
    paths = list(names)
    for place, path in zip((20, 100, 199), BAD, strict=True):
        paths.insert(place, path)
    lines = [
        {"image": path, "caption": f"a {COLORS[number % 4]} image number {number}"}
        for number, path in enumerate(paths)
    ]
    manifest = folder / "mine.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return OwnData(manifest, [folder / name for name in names])


KINDS = ("rgb.jpg", "rgb.png", "grey.jpg", "grey.png", "cmyk.jpg", "rgba.png", "palette.png")
KINDS += ("deep.png", "turned.jpg", "clear_palette.png")


def _names(count: int) -> list[str]:
    return [KINDS[number % len(KINDS)] for number in range(count)]


def _save(path: Path, number: int) -> None:
    """Write one image of the kind that its name says; sizes differ."""
    rng = np.random.default_rng(number)
    height, width = 24 + number % 17, 40 + number % 23
    rgb = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    kind = path.stem.partition("_")[2]
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was held upright: 90 degrees
        rgb.save(path, exif=exif)
    elif kind == "rgba":
        alpha = Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8))
        rgb.putalpha(alpha)
        rgb.save(path)
    elif kind == "deep":
        Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16)).save(path)
    elif kind == "clear_palette":
        rgb.quantize(32).save(path, transparency=3)
    else:
        mode = {"rgb": "RGB", "grey": "L", "cmyk": "CMYK", "palette": "P"}[kind]
        rgb.convert(mode).save(path)


def _write_bad(folder: Path, whole: Path) -> None:
    data = whole.read_bytes()
    (folder / "bad" / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "bad" / "letter.jpg").write_text("Dear reader, this is no image.\n")
