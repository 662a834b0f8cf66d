"""From a JPEG to the 256 px crop that training takes: today's loader beside the one before it.

Both sides draw the same crops from the same generators. "before" is what the loader did at 1.0:
OpenCV decodes every pixel, OpenCV's area means shrink the crop. It stands here, so that it stays
the same while the loader changes. The photos are generated: patches of colour that change slowly,
edges, and noise. The figures say how many bits a pixel they take: Huffman's code is what reduced
decoding cannot skip.

Processor time of one thread, in pairs: each round times both sides, one after the other, and gives
a ratio. What evaluation does (all pixels, Pillow's bicubic) is timed too, with every decoder that
is installed, since these give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from triptych.data import jpeg as decoders
from triptych.data.batches import ImageCache
from triptych.data.images import decode_image
from triptych.data.records import ImageSource
from triptych.data.transforms.pipeline import (
    ImageTransform,
    ImageTransformConfig,
    crop,
    draw_crop,
    mirror,
    normalise_batch,
    resize,
)
from triptych.data.transforms.randaugment import Pixels

Maker = Callable[[ImageSource, np.random.Generator], Any]

CONFIG = ImageTransformConfig(image_size=256, randaugment_num_ops=0)
BARS = {"decode_640x480": 1.25, "decode_12mp": 2.5}


@dataclass(frozen=True, slots=True)
class Kind:
    """Photos of one size.

    Attributes:
        name: In the figures.
        width: In pixels.
        height: In pixels.
        noise: Most grey levels of noise, which decides the bytes a pixel.
        number: Different photos.
        crops: Crops of each photo that a round takes.
    """

    name: str
    width: int
    height: int
    noise: int
    number: int
    crops: int


KINDS = (
    Kind("decode_640x480", 640, 480, noise=12, number=8, crops=4),
    Kind("decode_12mp", 4000, 3000, noise=9, number=3, crops=3),
)


def photo(kind: Kind, seed: int) -> bytes:
    """Return a JPEG of quality 90 with halved colour, as cameras and COCO write them."""
    rng = np.random.default_rng(seed)
    canvas = np.zeros((kind.height, kind.width, 3), dtype=np.float32)
    for cell, share in ((256, 0.5), (64, 0.3), (16, 0.2)):
        size = (kind.height // cell + 2, kind.width // cell + 2, 3)
        coarse = rng.integers(0, 256, size, dtype=np.uint8)
        canvas += share * cv2.resize(
            coarse, (kind.width, kind.height), interpolation=cv2.INTER_CUBIC
        )
    for _ in range(60):  # edges
        x, y = rng.integers(0, kind.width), rng.integers(0, kind.height)
        w, h = rng.integers(8, kind.width // 4), rng.integers(8, kind.height // 4)
        canvas[y : y + h, x : x + w] += rng.integers(-60, 60, 3)
    canvas += rng.integers(-kind.noise, kind.noise + 1, canvas.shape)
    buffer = io.BytesIO()
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    image.save(buffer, "JPEG", quality=90, subsampling="4:2:0")
    return buffer.getvalue()


def opencv(source: ImageSource) -> Pixels:
    """Return all pixels as the loader decoded them at 1.0."""
    data = source.read()
    header = decoders.read_jpeg_header(data)
    assert header is not None and header.is_plain and header.has_end
    encoded = np.frombuffer(data, dtype=np.uint8)
    bgr = cv2.imdecode(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def before(source: ImageSource, rng: np.random.Generator) -> Pixels:
    """Return a training crop as the loader made it at 1.0."""
    pixels = opencv(source)
    height, width = pixels.shape[:2]
    assert CONFIG.crop_scale is not None
    region = crop(pixels, draw_crop(width, height, CONFIG.crop_scale, CONFIG.crop_ratio, rng))
    size = CONFIG.image_size
    shrunk = (min(size, region.shape[1]), min(size, region.shape[0]))
    found: Any = region
    if shrunk != region.shape[1::-1]:
        found = cv2.resize(found, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != (size, size):
        found = cv2.resize(found, (size, size), interpolation=cv2.INTER_CUBIC)
    return mirror(found) if rng.random() < CONFIG.flip_probability else found


TRANSFORM, CACHE = ImageTransform(CONFIG, train=True), ImageCache(0)


def now(source: ImageSource, rng: np.random.Generator) -> Pixels:
    """Return a training crop as the loader makes it, through its cache, which keeps nothing."""
    plan = TRANSFORM.plan(rng)
    assert plan is not None
    pixels, planned = CACHE.planned(source, plan)
    return TRANSFORM.apply(pixels, rng, planned=planned).pixels


def evaluated_before(source: ImageSource, rng: np.random.Generator) -> Pixels:
    """Return the image as evaluation, search and the server saw it at 1.0."""
    del rng
    return resize(opencv(source), CONFIG.image_size, CONFIG.image_size)


def evaluated(source: ImageSource, rng: np.random.Generator) -> Pixels:
    """Return the same as it is read now."""
    del rng
    return resize(decode_image(source), CONFIG.image_size, CONFIG.image_size)


def seconds(make: Maker, photos: Sequence[ImageSource], crops: int) -> float:
    """Return processor seconds an image."""
    began = time.process_time()
    for number in range(crops):
        for seed, photo in enumerate(photos):
            make(photo, np.random.default_rng((number, seed)))
    return (time.process_time() - began) / (crops * len(photos))


def compare(
    first: Maker,
    second: Maker,
    photos: Sequence[ImageSource],
    crops: int,
    rounds: int,
) -> dict[str, Any]:
    """Return how many images a second and core each makes, and the second's ratio to the first."""
    seconds(first, photos, 1)
    seconds(second, photos, 1)
    pairs = [(seconds(first, photos, crops), seconds(second, photos, crops)) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in pairs)
    return {
        "ratio": round(statistics.median(ratios), 2),
        "lowest": round(ratios[0], 2),
        "highest": round(ratios[-1], 2),
        "before_per_s": round(1 / statistics.median(a for a, _ in pairs), 1),
        "now_per_s": round(1 / statistics.median(b for _, b in pairs), 1),
    }


def reduced_apart(data: bytes) -> dict[str, float]:
    """Return how far evaluation's image would be from today's if it were decoded smaller."""
    size = CONFIG.image_size
    whole = decode_image(data)
    factor = max(f for f in (1, 2, 4, 8) if min(whole.shape[:2]) >= f * size)
    header = decoders.read_jpeg_header(data)
    assert header is not None
    small = decoders.decode_plain_jpeg(data, header, factor)
    assert small is not None
    apart = np.abs(resize(whole, size, size).astype(int) - resize(small, size, size))
    return {"factor": factor, "mean": round(float(apart.mean()), 2), "max": int(apart.max())}


def normalising(rounds: int) -> dict[str, Any]:
    """Return milliseconds to turn 32 images to a batch, as at 1.0 and now."""
    images = [np.random.default_rng(i).integers(0, 256, (256, 256, 3), np.uint8) for i in range(32)]
    mean, std = CONFIG.mean, CONFIG.std

    def old() -> torch.Tensor:
        planes = np.empty((32, 3, 256, 256), dtype=np.uint8)
        for image, (red, green, blue) in zip(images, planes, strict=True):
            cv2.split(image, [red, green, blue])
        scale = torch.tensor([1 / (255 * s) for s in std]).view(3, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(mean, std)]).view(3, 1, 1)
        return torch.from_numpy(planes).to(torch.float32).mul_(scale).add_(shift)

    equal = torch.equal(old(), normalise_batch(images, mean, std))
    times: dict[str, list[float]] = {"before_ms": [], "now_ms": []}
    for _ in range(rounds):
        for name, make in (
            ("before_ms", old),
            ("now_ms", lambda: normalise_batch(images, mean, std)),
        ):
            began = time.process_time()
            make()
            times[name].append((time.process_time() - began) * 1e3)
    return {name: round(statistics.median(found), 2) for name, found in times.items()} | {
        "bitwise_equal": equal
    }


def measure(kinds: Sequence[Kind], rounds: int) -> dict[str, Any]:
    """Return all figures."""
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        for kind in kinds:
            data = [photo(kind, seed) for seed in range(kind.number)]
            photos = []
            for number, encoded in enumerate(data):
                path = Path(folder) / f"{kind.name}_{number}.jpg"
                path.write_bytes(encoded)
                photos.append(ImageSource(str(path)))
            training = compare(before, now, photos, kind.crops, rounds)
            bits = 8 * sum(map(len, data)) / (kind.width * kind.height * len(data))
            found |= {
                kind.name: training["ratio"],
                f"{kind.name}_training": training,
                f"{kind.name}_evaluation": compare(evaluated_before, evaluated, photos, 1, rounds),
                f"{kind.name}_bits_per_pixel": round(bits, 2),
                f"{kind.name}_if_evaluation_were_reduced": reduced_apart(data[0]),
            }
    found["batch_of_32"] = normalising(10 * rounds)
    found["decoder"] = "opencv" if decoders._simplejpeg() is None else "simplejpeg"
    found["bars"] = BARS
    return found


def main() -> None:
    """Print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    print(json.dumps(measure(KINDS, options.rounds)))


if __name__ == "__main__":
    main()
