"""Gather VLMo's figures: golden files, speed, the three stages, and what each idea adds.

Writes `benchmarks/results/vlmo.json`; `gather.py` says how. The stages take about 20
minutes on two idle cores. The gains are those of the studies `vlmo.*` (benchmarks/lab/studies.py).

    python -m benchmarks.pages.vlmo
    python -m benchmarks.pages.vlmo --only golden step
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from benchmarks.pages.gather import (
    Benchmark,
    Part,
    at_least,
    at_most,
    build_parser,
    gather,
    study_figures,
)

MODEL = "runs/vlmo_bench/stagewise/pretrain/model"
STUDIES = {
    "stagewise_gain": "vlmo.stages",
    "multiway_gain": "vlmo.multiway",
    "global_negatives_gain": "vlmo.negatives",
}
"""Figures that studies give."""

VLMO = Benchmark(
    name="vlmo",
    title="VLMo",
    what={
        "golden_max_error": "largest difference from the released code's outputs and losses",
        "stagewise_minutes": "all stages on the scenes, two cores, minutes",
        "i2t_r1": "image-to-text recall at 1 among 500 unseen scenes, dot product",
        "t2i_r1": "text-to-image, the same",
        "i2t_r1_dual": "image-to-text recall at 1 on a subset of them, dot product",
        "t2i_r1_dual": "text-to-image, the same",
        "i2t_r1_itm": "image-to-text on the same subset, ITM on all pairs",
        "t2i_r1_itm": "text-to-image, the same",
        "vqa": "VQA accuracy by classification",
        "step_fast_over_plain": "speed-up of a third-stage step, base, over the plain one",
        "stagewise_gain": "gain from the first two stages, with an equally long third stage",
        "multiway_gain": "gain from experts over one FFN for all",
        "global_negatives_gain": "gain from ITM negatives of both processes, recall after ITM",
        "dual_over_fusion_speed": "speed-up of dot products over ITM, 5,000 images x 25,000 texts",
    },
    prefix="vlmo_",
    details=("range", "dual_minutes", "fusion_days"),
    extra=tuple(STUDIES),
    parts=(
        Part("golden", ("-m", "benchmarks.parity.vlmo_golden"), ("golden_max_error",)),
        Part("step", ("-m", "benchmarks.speed.vlmo_step"), ("step_fast_over_plain",)),
        Part(
            "stagewise",
            ("-m", "benchmarks.scenes.vlmo_scenes", "stagewise"),
            ("stagewise_minutes", "i2t_r1", "t2i_r1", "vqa"),
        ),
        Part(
            "dual",
            ("-m", "benchmarks.speed.vlmo_dual", "--model", MODEL),
            (
                *("dual_over_fusion_speed", "i2t_r1_dual", "t2i_r1_dual"),
                *("i2t_r1_itm", "t2i_r1_itm"),
            ),
        ),
    ),
    bars={
        "golden_max_error": at_most("golden_max_error", 1e-4),
        "stagewise_minutes": at_most("stagewise_minutes", 20),
        "i2t_r1": at_least("i2t_r1", 0.70),
        "t2i_r1": at_least("t2i_r1", 0.70),
        "vqa": at_least("vqa", 0.60),
        "step_fast_over_plain": at_least("step_fast_over_plain", 1.25),
    },
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser(VLMO, __doc__).parse_args(arguments)
    return gather(VLMO, options, partial(study_figures, STUDIES))


if __name__ == "__main__":
    sys.exit(main())
