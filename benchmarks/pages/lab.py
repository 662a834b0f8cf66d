"""Gather what the laboratory finds: studies, copies and leaks, faulty runs, adapters, forecasts.

Writes `benchmarks/results/lab.json`; `gather.py` says how. Studies are not run here, since they
take hours: `python -m benchmarks.lab.studies` does, and this counts what it stored. Parts that need
a trained model take it from `runs/demo`, which `triptych demo --scale tiny` writes, or from the run
that `benchmarks/lab/wise.py` names.

    python -m benchmarks.pages.lab
    python -m benchmarks.pages.lab --only data_doctor
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.pages.gather import (
    RESULTS,
    STUDIES,
    Bar,
    Benchmark,
    Figures,
    Part,
    at_least,
    at_most,
    build_parser,
    gather,
    load_json,
    read_json_line,
    told_apart,
)

DEMO = "runs/demo"
MODEL, SCENES = ("--model", f"{DEMO}/pretrain/model"), ("--data", f"{DEMO}/data")
CAPTIONER = ("--tuned", "runs/lab_caption/model")
"""`benchmarks/lab/wise.py` says how it is trained."""
CHOICE = ("--limit", "400", "--choose", "compositional")


def read_objects(code: int, output: str) -> dict[str, Any]:
    """Return figures that are objects, each with its value in words or as a number.

    Raises:
        DataError: The program failed.
    """
    found: dict[str, Any] = {}
    for key, figure in read_json_line(code, output).items():
        value = figure.pop("value")
        found[key] = ("yes" if value else "no") if isinstance(value, bool) else value
        found[f"{key}_details"] = figure
    return found


LAB = Benchmark(
    name="lab",
    title="The laboratory: studies, sound data, healthy runs, adapters, forecasts",
    what={
        "studies_told_apart": "built-in studies whose main comparison excludes zero at 3 seeds",
        "duplicates_found": "planted near copies found among 20,000 images",
        "duplicates_precision": "found near copies that were planted",
        "leaks_found": "planted leaks found",
        "leaks_precision": "found leaks that were planted",
        "doctor_faults": "faulty runs whose fault is named, of 10, in the worse of two seeds",
        "false_alarms": "findings in 6 healthy runs, both seeds together",
        "lora_memory_tiny": "gradients and optimizer state, LoRA over full fine-tuning, tiny",
        "lora_memory_base": "the same, base",
        "lora_score": "VQA accuracy, LoRA over full fine-tuning, scenes",
        "wise_gain": "captions: within a point of fine-tuned, and half of the lost recall regained",
        "plan_error": "worst forecast of memory and step time against measured, 6 configurations",
        "memory_error": "of these, the worst of peak memory",
        "step_time_error": "of these, the worst of step time",
        "far_step_time_error": "the same, forecast from a quarter of the micro-batch",
    },
    prefix="lab_",
    parts=(
        Part(
            "data_doctor",
            ("-m", "benchmarks.lab.data_doctor"),
            ("duplicates_found", "duplicates_precision", "leaks_found", "leaks_precision"),
        ),
        Part(
            "doctor_faults",
            ("-m", "benchmarks.lab.doctor_faults"),
            ("doctor_faults", "false_alarms"),
        ),
        Part(
            "lora_memory",
            ("-m", "benchmarks.lab.lora", "--memory"),
            ("lora_memory_tiny", "lora_memory_base"),
            read_objects,
        ),
        Part(
            "lora_score",
            ("-m", "benchmarks.lab.lora", "--score", *MODEL, *SCENES),
            ("lora_score",),
            read_objects,
        ),
        Part(
            "wise",
            ("-m", "benchmarks.lab.wise", *MODEL, *CAPTIONER, *SCENES, *CHOICE),
            ("wise_gain",),
            read_objects,
        ),
        Part(
            "plan_error",
            ("-m", "benchmarks.lab.plan_error"),
            ("plan_error", "memory_error", "step_time_error", "far_step_time_error"),
        ),
    ),
    bars={
        "studies_told_apart": at_least("studies_told_apart", 6),
        "duplicates_found": at_least("duplicates_found", 0.95),
        "duplicates_precision": at_least("duplicates_precision", 0.99),
        "leaks_found": at_least("leaks_found", 0.95),
        "leaks_precision": at_least("leaks_precision", 0.99),
        "doctor_faults": at_least("doctor_faults", 10),
        "false_alarms": at_most("false_alarms", 0),
        "lora_memory_tiny": at_most("lora_memory_tiny", 0.5),
        "lora_memory_base": at_most("lora_memory_base", 0.5),
        "lora_score": at_least("lora_score", 0.95),
        "wise_gain": Bar("yes", lambda values: values["wise_gain"] == "yes"),
        "plan_error": at_most("plan_error", 0.1),
    },
)


def studies_figure() -> Figures:
    """Return how many stored studies tell the sides of their main comparison apart."""
    names = told_apart(RESULTS)
    stored = load_json(STUDIES / f"{names[0]}.json") if names else {}
    return {
        "studies_told_apart": {
            "value": len(names),
            "command": "python -m benchmarks.lab.studies",
            "commit": stored.get("commit", ""),
            "machine": stored.get("machine", {}),
            "studies": names,
        }
    }


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser(LAB, __doc__).parse_args(arguments)
    return gather(LAB, options, studies_figure)


if __name__ == "__main__":
    sys.exit(main())
