"""Threads that share one engine: how many answers differ from those of one thread; prints JSON.

Every model is asked everything that it can be asked, about images in files, which are read and
decoded again in every call. Each thread draws its calls from its own random numbers.

    python -m benchmarks.speed.threads runs/demo/pretrain/model runs/demo/vqa/model
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from triptych.serving.engine import Engine, load
from triptych.serving.verb import Item, Verb
from triptych.serving.verbs import verbs_of

TEXTS = ("a red circle", "a blue square left of a green star", "is there a yellow triangle?")
OPTIONS: dict[str, dict[str, Any]] = {"classify": {"labels": ["red circle", "blue star", "square"]}}

Call = tuple[Engine, Verb, Item, Any]


def write_images(folder: Path, number: int) -> list[str]:
    """Write JPEG images of random colours and sizes, and return their paths."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{place}.jpg" for place in range(number)]
    for path in paths:
        height, width = rng.integers(48, 256, size=2)
        coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return [str(path) for path in paths]


def all_calls(folders: Sequence[str], images: Sequence[str]) -> list[Call]:
    """Return what the models can be asked about the images, one item a call."""
    calls: list[Call] = []
    for folder in folders:
        engine = load(folder)
        for verb in verbs_of(engine).values():
            options = verb.read_options(OPTIONS.get(verb.name))
            if verb.name == "classify" and engine.settings.trained_for == ("classification",):
                options = verb.read_options()
            for number, image in enumerate(images):
                text = TEXTS[number % len(TEXTS)]
                said = {field.name: text for field in verb.texts if field.required}
                shown = [image, images[number - 1]][: verb.num_images]
                calls.append((engine, verb, verb.item(shown, said), options))
    return calls


def ask(call: Call) -> list[dict[str, Any]]:
    """Make one call."""
    engine, verb, item, options = call
    return verb.ask(engine, [item], options)


def measure(calls: Sequence[Call], num_threads: int, num_calls: int) -> dict[str, Any]:
    """Compare the answers of several threads with those of this one, made before."""
    expected = [ask(call) for call in calls]
    share = -(-num_calls // num_threads)

    def work(seed: int) -> Counter[str]:
        wrong: Counter[str] = Counter()
        for place in np.random.default_rng(seed).integers(len(calls), size=share):
            try:
                wrong["wrong"] += ask(calls[place]) != expected[place]
            except Exception as error:  # whatever a race may raise is a wrong answer
                wrong["wrong"] += 1
                wrong[f"{type(error).__name__}: {error}"] += 1
        return wrong

    start = time.perf_counter()
    with ThreadPoolExecutor(num_threads) as pool:
        found = sum(pool.map(work, range(num_threads)), Counter())
    return {
        "threads": found.pop("wrong", 0),
        "num_threads": num_threads,
        "calls": share * num_threads,
        "verbs": sorted({call[1].name for call in calls}),
        "errors": dict(found),
        "calls_per_s": round(share * num_threads / (time.perf_counter() - start), 1),
    }


def main() -> None:
    """Print the number of wrong answers and what was asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="+", help="model folders")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        calls = all_calls(options.models, write_images(Path(folder), options.images))
        print(json.dumps(measure(calls, options.threads, options.calls)))


if __name__ == "__main__":
    main()
