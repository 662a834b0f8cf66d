"""Gather the figures of the foundation: the demo's, and what it stands on.

Runs the other benchmarks and the two tests that give a figure, takes the rest from the demo's
`results.json`, and writes `benchmarks/results/foundation.json`; `gather.py` says how.

    triptych demo --scale tiny --out runs/demo
    python -m benchmarks.pages.foundation --demo runs/demo/results.json
    python -m benchmarks.pages.foundation --demo runs/demo/results.json --skip beam precision
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages.gather import (
    Bar,
    Benchmark,
    Figures,
    Part,
    at_least,
    at_most,
    build_parser,
    gather,
    load_json,
)
from triptych.core.errors import DataError

DEMO_SCALE = "tiny"
SCORES = (
    "i2t_r1",
    "t2i_r1",
    "i2t_r1_itm",
    "t2i_r1_itm",
    "caption_objects",
    "vqa",
    "vqa_blind",
    "grounding",
)
DEMO_KEYS = ("demo_minutes", *SCORES, *(f"compositional_{key}" for key in SCORES))
"""What the demo gives; on the compositional split, without a target."""


def read_own_data(code: int, output: str) -> dict[str, Any]:
    """Return "yes" if tests passed and none failed, was skipped or went wrong.

    Raises:
        DataError: No test was run, so nobody can tell.
    """
    counts = {
        word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error|skipped)", output)
    }
    if not counts:
        raise DataError(f"exit code {code}, and no test was run")
    good = code == 0 and counts.keys() == {"passed"}
    return {"own_data": "yes" if good else "no", "tests": counts}


FOUNDATION = Benchmark(
    name="foundation",
    title="The demo, and what all models share",
    what={
        "demo_minutes": "the whole demo on two cores, minutes",
        "i2t_r1": "image-to-text recall at 1 among 500 unseen scenes, by ITC",
        "t2i_r1": "text-to-image, the same",
        "i2t_r1_itm": "image-to-text, re-ranked by ITM",
        "t2i_r1_itm": "text-to-image, re-ranked by ITM",
        "caption_objects": "objects that captions name with the right size, colour and shape",
        "vqa": "VQA accuracy",
        "vqa_blind": "VQA accuracy of the majority answer per question type",
        "grounding": "boxes with an IoU of at least 0.5",
        "bf16_speedup": "speed-up of the demo's training step, bf16 over fp32 with torch's SDPA",
        "beam_cache_speedup": "speed-up of beam search by caches, 5 beams, 20 tokens, base size",
        "scenes_per_s": "scenes generated per second, 64 px, one core",
        "resume_kills": "runs of 10 that resume bitwise equal after kill -9",
        "own_data": "200 mixed files, 3 of them corrupt, work from check to caption",
    },
    extra=DEMO_KEYS,
    parts=(
        Part(
            "scenes",
            (
                "-m",
                "benchmarks.speed.scenes",
            ),
            ("scenes_per_s",),
        ),
        Part(
            "beam",
            (
                "-m",
                "benchmarks.speed.beam",
            ),
            ("beam_cache_speedup",),
        ),
        Part(
            "precision",
            (
                "-m",
                "benchmarks.speed.precision",
            ),
            ("bf16_speedup",),
        ),
        Part(
            "attention",
            (
                "-m",
                "benchmarks.speed.attention",
            ),
            (),
        ),
        Part("resume_kills", ("-m", "tests.workflows.kills"), ("resume_kills",)),
        Part(
            "own_data",
            ("-m", "pytest", "-q", "tests/workflows/test_own_data.py"),
            ("own_data",),
            read_own_data,
        ),
    ),
    bars={
        "demo_minutes": at_most("demo_minutes", 15),
        "i2t_r1": at_least("i2t_r1", 0.80),
        "t2i_r1": at_least("t2i_r1", 0.80),
        "i2t_r1_itm": at_least("i2t_r1_itm", 0.85),
        "t2i_r1_itm": at_least("t2i_r1_itm", 0.85),
        "caption_objects": at_least("caption_objects", 0.60),
        "vqa": at_least("vqa", 0.70),
        "vqa_blind": Bar("<= vqa - 0.2", lambda v: bool(v["vqa"] - v["vqa_blind"] >= 0.20 - 1e-9)),
        "grounding": at_least("grounding", 0.50),
        "bf16_speedup": at_least("bf16_speedup", 1.8),
        "beam_cache_speedup": at_least("beam_cache_speedup", 6),
        "scenes_per_s": at_least("scenes_per_s", 2000),
        "resume_kills": at_least("resume_kills", 10),
        "own_data": Bar("yes", lambda values: bool(values["own_data"] == "yes")),
    },
)


def demo_figures(results: Mapping[str, Any]) -> Figures:
    """Return the figures of the demo.

    Raises:
        DataError: It was run at another scale than the targets are for, or shortened.
    """
    if results.get("scale") != DEMO_SCALE or not results.get("whole", True):
        part = "" if results.get("whole", True) else "a part of "
        raise DataError(
            f"the demo ran {part}scale {results.get('scale')!r}; the targets are for all of "
            f"{DEMO_SCALE!r}: run `triptych demo --scale tiny --out runs/demo`"
        )
    origin = {"commit": results["commit"], "machine": results["machine"]}
    return {key: figure | origin for key, figure in results["figures"].items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser(FOUNDATION, __doc__)
    parser.add_argument("--demo", type=Path, required=True, help="results.json of the tiny demo")
    options = parser.parse_args(arguments)
    return gather(FOUNDATION, options, lambda: demo_figures(load_json(options.demo)))


if __name__ == "__main__":
    sys.exit(main())
