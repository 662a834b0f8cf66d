"""Gather FLAVA's figures: parity, first gradient, step and memory against transformers, scenes.

Writes `benchmarks/results/flava.json`; `gather.py` says how. Parity, step and memory
need transformers (`pip install triptych[bench]`). The joint recipe takes under 20 minutes on two
idle cores. The gains are those of the studies `flava.*` (benchmarks/lab/studies.py).

    python -m benchmarks.pages.flava
    python -m benchmarks.pages.flava --only parity step_fp32
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

STUDIES = {"joint_gain": "flava.joint", "global_contrastive_gain": "flava.contrastive"}
"""Figures that studies give."""

FLAVA = Benchmark(
    name="flava",
    title="FLAVA",
    what={
        "parity_max_error": "largest difference from transformers, 3 sizes, 3 kinds of batches",
        "grad_norm_step0": "norm of the first gradient, released size, random weights",
        "step_fp32_over_transformers": "speed-up over transformers, 8 pairs, released size, fp32",
        "step_bf16_over_transformers": "the same in bf16",
        "memory_over_transformers": "peak memory of that step relative to transformers",
        "masking_speedup": "speed-up of block masks of 256 images over transformers' loop",
        "speedup_over_plain_loop": "the same over our own plain Python loop",
        "joint_minutes": "all stages on the scenes, two cores, minutes",
        "i2t_r1": "image-to-text recall at 1 among 500 unseen scenes, zero-shot",
        "t2i_r1": "text-to-image, the same",
        "probe_shape": "linear probe of the image encoder, shape of one object",
        "probe_shape_compositional": "the same, on colour-shape pairs never seen in training",
        "shape_supervised": "the same encoder, trained on shape labels from random weights",
        "shape_supervised_compositional": "the same, on colour-shape pairs without labels",
        "joint_gain": "gain from adding images and texts, equal number of steps",
        "global_contrastive_gain": "gain from the global contrastive gradient",
    },
    prefix="flava_",
    details=("range", "by_step"),
    extra=tuple(STUDIES),
    parts=(
        Part("parity", ("-m", "benchmarks.parity.flava_parity"), ("parity_max_error",)),
        Part(
            "gradients", ("-m", "benchmarks.speed.flava_step", "--gradients"), ("grad_norm_step0",)
        ),
        *(
            Part(
                f"step_{precision}",
                ("-m", "benchmarks.speed.flava_step", "--precision", precision),
                (f"step_{precision}_over_transformers",),
            )
            for precision in ("fp32", "bf16")
        ),
        Part(
            "memory",
            ("-m", "benchmarks.speed.flava_step", "--memory"),
            ("memory_over_transformers",),
        ),
        Part(
            "masking",
            (
                "-m",
                "benchmarks.speed.masking",
            ),
            ("masking_speedup", "speedup_over_plain_loop"),
        ),
        Part(
            "joint",
            ("-m", "benchmarks.scenes.flava_scenes", "joint"),
            ("joint_minutes", "i2t_r1", "t2i_r1", "probe_shape", "probe_shape_compositional"),
        ),
        Part(
            "ceiling",
            ("-m", "benchmarks.scenes.flava_ceiling"),
            ("shape_supervised", "shape_supervised_compositional"),
        ),
    ),
    bars={
        "parity_max_error": at_most("parity_max_error", 1e-4),
        "grad_norm_step0": at_most("grad_norm_step0", 50),
        "step_fp32_over_transformers": at_least("step_fp32_over_transformers", 1.3),
        "step_bf16_over_transformers": at_least("step_bf16_over_transformers", 1.3),
        "memory_over_transformers": at_most("memory_over_transformers", 0.8),
        "masking_speedup": at_least("masking_speedup", 20),
        "joint_minutes": at_most("joint_minutes", 20),
        "i2t_r1": at_least("i2t_r1", 0.65),
        "t2i_r1": at_least("t2i_r1", 0.65),
        "probe_shape": at_least("probe_shape", 0.95),
    },
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser(FLAVA, __doc__).parse_args(arguments)
    return gather(FLAVA, options, partial(study_figures, STUDIES))


if __name__ == "__main__":
    sys.exit(main())
