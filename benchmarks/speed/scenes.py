"""Measure how many scenes a second one core draws and paints; prints JSON.

Run: `python -m benchmarks.speed.scenes [--image-size 64]`. Nothing is encoded or written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import cv2

from triptych.scenes.config import SceneConfig
from triptych.scenes.render import render_scene
from triptych.scenes.world import generate_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=64, help="side of the image, pixels")
    parser.add_argument("--num-scenes", type=int, default=2000, help="scenes in each run")
    parser.add_argument("--num-runs", type=int, default=7, help="runs; the median counts")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    rates = []
    for run in range(arguments.num_runs):
        config = SceneConfig(seed=run, image_size=arguments.image_size)
        start = time.perf_counter()
        for index in range(arguments.num_scenes):
            scene = generate_scene(config, "train", index)
            render_scene(scene, config.image_size, noise=config.noise)
        rates.append(arguments.num_scenes / (time.perf_counter() - start))
    print(
        json.dumps(
            {
                "scenes_per_s": round(statistics.median(rates)),
                "slowest_run": round(min(rates)),
                "fastest_run": round(max(rates)),
                "image_size": arguments.image_size,
                "cores": 1,
            }
        )
    )


if __name__ == "__main__":
    main()
