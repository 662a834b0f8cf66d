"""Whether decoding at a reduced size in training changes the recall that is reached; prints JSON.

Scenes of 320 px are written as JPEGs. FLAVA learns from them with its contrastive loss alone, at 64
px, from images that are decoded at a reduced size or whole, with the same seeds: `decoding.yaml` is
the study, `triptych compare` runs it. Recall is that of 500 other scenes.
`decoding_recall_kept` says whether the 95 % t interval of the paired difference of mean recall
holds 0, or lies above it. About six minutes of one core.

    python -m benchmarks.scenes.decoding
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pages.gather import ROOT, load_json, main_comparison
from triptych.data.transforms.pipeline import ImageTransform
from triptych.lab.results import RESULTS_FILE
from triptych.recipes.flava import CROPS
from triptych.scenes.config import SceneConfig
from triptych.scenes.write import write_scenes

STUDY = Path(__file__).with_suffix(".yaml")
SCENE_SIZE, IMAGE_SIZE = 320, 64
DRAWS, TEST = 1000, 500


def factors() -> dict[str, float]:
    """Return the share of crops by what the sides of their image are divided by."""
    transform = ImageTransform(replace(CROPS, image_size=IMAGE_SIZE), train=True)
    found = []
    for seed in range(DRAWS):
        plan = transform.plan(np.random.default_rng(seed))
        assert plan is not None
        found.append(plan.factor(SCENE_SIZE, SCENE_SIZE))
    return {str(factor): found.count(factor) / DRAWS for factor in sorted(set(found))}


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """Return what the study found."""
    pair = main_comparison({"output": result})
    kept = pair["high"] >= 0
    recall = {
        name: {end: round(row["scores"][pair["score"]][end], 4) for end in ("mean", "low", "high")}
        for name, row in result["variants"].items()
    }
    return {
        "decoding_recall_kept": "yes" if kept else "no",
        "difference": {end: round(pair[end], 4) for end in ("mean", "low", "high")},
        "recall": recall,
        "seeds": result["seeds"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", default="tiny")
    parser.add_argument("--num-threads", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        files = write_scenes(
            Path(folder) / "scenes",
            options.scenes,
            num_test=TEST,
            config=SceneConfig(image_size=SCENE_SIZE),
            formats=("captions",),
            captions_per_image=1,
        )
        flags = ["--scale", options.scale, "--seeds", str(options.seeds)]
        flags += ["--num-threads", str(options.num_threads)]
        flags += ["--data", str(files.karpathy), "--split", "train"]
        flags += ["--data.val", str(files.karpathy), "--data.val-split", "test"]
        flags += ["--image-root", str(files.images)]
        command = [sys.executable, "-m", "triptych", "compare", str(STUDY), *flags]
        command += ["--out", str(Path(folder) / "study")]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        result = load_json(Path(folder) / "study" / RESULTS_FILE)
    protocol = (
        f"{options.scenes:,} scenes of {SCENE_SIZE} px as JPEGs, recall on {TEST} others, "
        f"FLAVA {options.scale} at {IMAGE_SIZE} px with its contrastive loss alone"
    )
    print(json.dumps(figures(result) | {"factors": factors(), "protocol": protocol}))


if __name__ == "__main__":
    main()
