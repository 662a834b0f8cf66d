"""FLAVA's stages on the built-in scenes; prints JSON.

`joint` trains all stages at scale tiny, the image tokenizer included; it gives `joint_minutes`,
`i2t_r1` and `t2i_r1` (zero-shot retrieval among 500 unseen scenes, dot product) and `probe_shape`:
logistic regression on the frozen image encoder tells the shape of the one object of an image, on
images that pre-training has not seen. `probe_shape_compositional` is the same regression on
colour-shape pairs that neither pre-training nor the regression has seen: does it know shapes, or
pairs?

What each idea of the paper adds is in the studies `flava.*` of `triptych compare`.

    python -m benchmarks.scenes.flava_scenes joint --out runs/flava_bench
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.scenes.scene_runs import (
    DATA,
    STAGEWISE,
    scores,
    stages_protocol,
    train_and_print,
    train_stages,
)
from triptych.data.source import DataSourceConfig
from triptych.scenes.config import SceneConfig
from triptych.scenes.layout import SceneFiles
from triptych.scenes.write import IMAGES_PER_CLASS_IMAGE, write_scenes
from triptych.workflows.frozen import probe_folder
from triptych.workflows.run import MODEL_FOLDER
from triptych.workflows.stagewise import CLOSE_UPS, StagewisePlan, last_stage

SHAPE = "_(.+)$"
"""The shape in the name of a class, such as red_circle."""

PROBE_IMAGES = {"train": 2000, "val": 500, "test": 500, "compositional": 500}
SMOKE_PROBE_IMAGES = {"train": 80, "val": 20, "test": 20, "compositional": 20}


def joint(plan: StagewisePlan, out: Path, console: Console) -> dict[str, Any]:
    """Train the stages, retrieve, and probe."""
    minutes = train_stages(plan, out, console)
    model = last_stage(out / STAGEWISE) / MODEL_FOLDER
    found = scores(model, SceneFiles(out / DATA), "retrieval")
    sizes = SMOKE_PROBE_IMAGES if plan.scale == "smoke" else PROBE_IMAGES
    probe, words = probe_shape(model, write_classes(out / "classes", sizes, plan.seed))
    close_ups = f"{CLOSE_UPS[plan.scale]:,} close-ups"
    return {
        "joint_minutes": round(minutes, 1),
        "i2t_r1": found["i2t_r1"],
        "t2i_r1": found["t2i_r1"],
        **probe,
        "protocol": f"{stages_protocol(plan)}; trained on {close_ups} too; shape: {words}",
    }


def write_classes(folder: Path, sizes: dict[str, int], seed: int) -> SceneFiles:
    """Write images of one object in class folders, unless they are there.

    They are drawn as a series of their own: none is an image of pre-training.
    """
    files = SceneFiles(folder)
    if not files.summary.is_file():
        counts = {split: IMAGES_PER_CLASS_IMAGE * size for split, size in sizes.items()}
        write_scenes(
            folder,
            counts["train"],
            num_val=counts["val"],
            num_test=counts["test"],
            num_compositional=counts["compositional"],
            config=SceneConfig(seed=seed),
            formats=("classes",),
            captions_per_image=1,
            num_workers=2 if counts["train"] > 1000 else 1,
        )
    return files


def probe_shape(model: Path, files: SceneFiles) -> tuple[dict[str, float], str]:
    """Return the shares of images whose shape a linear probe tells, and how it was fitted."""
    train, val, *tests = (
        DataSourceConfig(path=str(files.classes(split)), reader="image_folder")
        for split in PROBE_IMAGES
    )
    names = ("probe_shape", "probe_shape_compositional")
    found = [probe_folder(model, train, val, test, label_pattern=SHAPE)[0][0] for test in tests]
    values = {name: metric.value for name, metric in zip(names, found, strict=True)}
    return values, found[0].protocol


def main(arguments: Sequence[str] | None = None) -> None:
    train_and_print(__doc__, "flava", "joint", joint, arguments)


if __name__ == "__main__":
    main()
