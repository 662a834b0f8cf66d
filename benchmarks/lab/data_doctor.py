"""Recall and precision of `triptych data check` on planted copies and leaks; prints JSON.

Each image is a collage of four scenes, since single scenes with one object look alike by chance.
Among `--images` of them lie 200 near copies (resized to 3/4, JPEG at quality 40, cropped by 5 % of
each axis in the middle or at a corner, mirrored) and 100 images whose copies, changed in the same
ways, are in the test data.

    python -m benchmarks.lab.data_doctor
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from triptych.data.check import CheckReport, CheckSettings, check_sources
from triptych.data.doctor.findings import FindingKind
from triptych.data.source import DataSourceConfig
from triptych.scenes.config import SceneConfig
from triptych.scenes.render import render_scene
from triptych.scenes.world import generate_scene

NEAR_COPIES, LEAKS = 200, 100


def collage(seed: int) -> Image.Image:
    """Return four scenes side by side, 128 px square."""
    config = SceneConfig()
    scenes = [generate_scene(config, "train", 4 * seed + number) for number in range(4)]
    parts = [render_scene(scene, config.image_size, noise=config.noise) for scene in scenes]
    rows = [np.hstack(parts[:2]), np.hstack(parts[2:])]
    return Image.fromarray(np.vstack(rows))


def compressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(buffer).convert("RGB")


def cropped(image: Image.Image, before: float) -> Image.Image:
    """Return an image without 5 % of each axis, `before` of it at the left and the top."""
    width, height = image.size
    left, top = round(before * width), round(before * height)
    return image.crop((left, top, left + round(0.95 * width), top + round(0.95 * height)))


CHANGES: tuple[Callable[[Image.Image], Image.Image], ...] = (
    lambda image: image.resize((96, 96), Image.Resampling.BICUBIC),
    compressed,
    lambda image: cropped(image, 0.025),
    lambda image: cropped(image, 0.05),
    ImageOps.mirror,
)


def write(folder: Path, images: int) -> tuple[Path, Path]:
    """Write the data and the test data; return their manifests."""
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    with train.open("w") as ours, test.open("w") as theirs:
        for number in range(images):
            image = collage(number)
            image.save(folder / f"{number}.png", compress_level=1)
            ours.write(json.dumps({"image": f"{number}.png", "caption": f"n {number}"}) + "\n")
            change = CHANGES[number % len(CHANGES)]
            if number < NEAR_COPIES:
                change(image).save(folder / f"copy{number}.png")
                entry = {"image": f"copy{number}.png", "caption": f"copy {number}"}
                ours.write(json.dumps(entry) + "\n")
            elif number < NEAR_COPIES + LEAKS:
                change(image).save(folder / f"test{number}.png")
                entry = {"image": f"test{number}.png", "caption": f"test {number}"}
                theirs.write(json.dumps(entry) + "\n")
    return train, test


def found_names(report: CheckReport, kind: FindingKind) -> set[str]:
    rows = [row for finding in report.findings if finding.kind is kind for row in finding.rows]
    return {Path(report.records[row].image.path).stem for row in rows if report.records[row].image}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder), options.images)
        source, against = (DataSourceConfig(path=str(path)) for path in paths)
        begun = time.perf_counter()
        report = check_sources([source], CheckSettings(against=(against,)))
        seconds = time.perf_counter() - begun
        copies = found_names(report, FindingKind.NEAR_COPY)
        leaks = found_names(report, FindingKind.LEAKED_IMAGE)
    right = {name for name in copies if name.startswith("copy")}
    planted = {str(n) for n in range(NEAR_COPIES, NEAR_COPIES + LEAKS)}
    return {
        "duplicates_found": len(right) / NEAR_COPIES,
        "duplicates_precision": round(len(right) / max(len(copies), 1), 4),
        "leaks_found": len(leaks & planted) / LEAKS,
        "leaks_precision": round(len(leaks & planted) / max(len(leaks), 1), 4),
        "seconds": round(seconds, 1),
        "protocol": f"{NEAR_COPIES} near copies, {LEAKS} leaks, {options.images:,} collages",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20_000)
    print(json.dumps(measure(parser.parse_args(arguments))))


if __name__ == "__main__":
    main()
