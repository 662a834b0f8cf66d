"""The minutes that `make demo` took on this machine, from what it left; prints JSON.

A machine trains in bf16 or in fp32, so that it gives one of two figures, and says why the other is
not measured. Stop all other work before `make demo`.

    make demo
    python -m benchmarks.speed.demo_minutes bf16
    python -m benchmarks.speed.demo_minutes fp32 --demo runs/demo
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages.gather import load_json

SHOWN = ("i2t_r1", "t2i_r1", "i2t_r1_itm", "t2i_r1_itm", "caption_objects", "vqa", "grounding")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the figure, and the scores of a demo of that length.

    Raises:
        DataError: There is no demo.
        SystemExit: It was no shortened demo on the built-in scenes.
    """
    results = load_json(options.demo / "results.json")
    if results["scale"] != "tiny" or results["minutes"] is None:
        raise SystemExit(f"{options.demo} is not what `make demo` writes: run that")
    precision = results["config"]["pretrain"]["train"]["precision"]
    if precision == "auto":
        precision = "fp32" if results["machine"]["bf16"] == "none" else "bf16"
    if precision != options.precision:
        return {
            f"demo_minutes_{options.precision}": None,
            "not_measured": f"this machine trains in {precision}",
        }
    steps = results["config"]["pretrain"]["train"]["max_steps"]
    return {
        f"demo_minutes_{precision}": results["figures"]["demo_minutes"]["value"],
        "scores": {key: round(results["figures"][key]["value"], 3) for key in SHOWN},
        "protocol": (
            f"make demo at commit {results['commit'][:12]}, budget {results['minutes']:g} minutes: "
            f"{steps:,} pre-training steps"
        ),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("precision", choices=("bf16", "fp32"))
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    print(json.dumps(measure(parser.parse_args(arguments))))


if __name__ == "__main__":
    main()
