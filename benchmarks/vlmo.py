"""Gather VLMo's figures in one file beside their bars.

Runs each part in a process of its own, stores its output as `results/vlmo_PART.json`, and writes
`benchmarks/results/vlmo.json`. `--skip PART` takes a part as it is stored; `--only PART` runs that
and takes the others as they are stored. A figure that nobody gives is an error and the file is not
written; a bar that is not reached is no error: the table and the file say so. The stages take about
20 minutes on two idle cores, each comparison of seeds longer.

    python -m benchmarks.vlmo
    python -m benchmarks.vlmo --only golden step
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.foundation import (
    RESULTS,
    Figures,
    Part,
    at_least,
    at_most,
    is_value,
    load_json,
    part_figures,
    read_json_line,
    run_part,
)
from triptych.core.errors import DataError
from triptych.core.files import write_json
from triptych.core.machine import current_commit, describe_machine

BARS = {
    "golden_max_error": at_most("golden_max_error", 1e-4),
    "stagewise_minutes": at_most("stagewise_minutes", 20),
    "i2t_r1": at_least("i2t_r1", 0.70),
    "t2i_r1": at_least("t2i_r1", 0.70),
    "vqa": at_least("vqa", 0.60),
    "step_fast_over_plain": at_least("step_fast_over_plain", 1.25),
}
"""By figure; the others are reported without a bar."""

DETAILS = ("low", "high", "with", "without", "range", "dual_minutes", "fusion_days")
"""What stands beside a figure where its part gives it."""

MODEL = "runs/vlmo_bench/stagewise/pretrain/model"


def _part(name: str, module: str, *arguments: str, keys: tuple[str, ...] = ()) -> Part:
    return Part(name, ("-m", f"benchmarks.{module}", *arguments), keys or (name,), read_json_line)


PARTS = (
    _part("golden", "vlmo_golden", keys=("golden_max_error",)),
    _part("step", "vlmo_step", keys=("step_fast_over_plain",)),
    _part(
        "stagewise",
        "vlmo_scenes",
        "stagewise",
        keys=("stagewise_minutes", "i2t_r1", "t2i_r1", "vqa"),
    ),
    *(
        _part(name, "vlmo_scenes", name)
        for name in ("stagewise_gain", "multiway_gain", "global_negatives_gain")
    ),
    _part(
        "dual",
        "vlmo_dual",
        "--model",
        MODEL,
        keys=("dual_over_fusion_speed", "i2t_r1_itm", "t2i_r1_itm"),
    ),
)


def stored_path(folder: Path, part: Part) -> Path:
    """Return the file of a part's whole output."""
    return folder / f"vlmo_{part.name}.json"


def collect(
    folder: Path, run: Sequence[str], machine: dict[str, str], commit: str, console: Console
) -> Figures:
    """Run the named parts, take the others as they are stored, and return all figures.

    Raises:
        DataError: Parts failed, or were never stored; the message holds every reason.
    """
    figures: Figures = {}
    problems = []
    for part in PARTS:
        path = stored_path(folder, part)
        try:
            if part.name in run:
                console.print(f"{part.name}: {part.command}", soft_wrap=True)
                write_json(path, run_part(part, machine, commit))
            stored = load_json(path)
            details = {k: stored["output"][k] for k in DETAILS if k in stored["output"]}
            own = part_figures(part, stored)
            figures |= {key: figure | details for key, figure in own.items()}
        except DataError as error:
            problems.append(f"{part.name}: {error}")
    if problems:
        raise DataError("\n".join(problems))
    return figures


def assemble(figures: Figures, machine: Mapping[str, str], commit: str) -> dict[str, Any]:
    """Put figures beside their bars; name commit and machine only where they differ.

    Raises:
        DataError: Figures have no value; the message names all of them.
    """
    values = {key: figure.get("value") for key, figure in figures.items()}
    missing = [key for key in {**BARS, **figures} if not is_value(values.get(key))]
    if missing:
        raise DataError(f"no value for {', '.join(missing)}")
    merged: Figures = {}
    for key, figure in figures.items():
        bar = BARS.get(key)
        merged[key] = {k: v for k, v in figure.items() if k not in ("commit", "machine")} | {
            "bar": bar.text if bar else None,
            "reached": bar.is_reached(values) if bar else None,
        }
        for name, common in (("commit", commit), ("machine", machine)):
            if figure[name] != common:
                merged[key][name] = figure[name]
    return {"machine": dict(machine), "commit": commit, "figures": merged}


def result_table(result: Mapping[str, Any]) -> Table:
    """Return the figures with their bars, for the terminal."""
    table = Table("figure", "value", "bar", "reached", "command")
    words = {True: "yes", False: "[bold red]no[/bold red]", None: ""}
    for key, figure in result["figures"].items():
        value = figure["value"]
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        bar = figure["bar"] or "reported"
        table.add_row(key, shown, bar, words[figure["reached"]], figure["command"])
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--only", nargs="*", choices=names, help="run these, the rest as stored")
    parser.add_argument("--skip", nargs="*", default=[], choices=names, help="take as stored")
    parser.add_argument("--out", type=Path, default=RESULTS / "vlmo.json")
    options = parser.parse_args(arguments)
    run = [name for name in (options.only or names) if name not in options.skip]
    console = Console()
    machine, commit = describe_machine(), current_commit()  # before results change the checkout
    try:
        figures = collect(options.out.parent, run, machine, commit, console)
        result = assemble(figures, machine, commit)
    except DataError as error:
        console.print(str(error), markup=False, style="red", soft_wrap=True)
        return 1
    write_json(options.out, result)
    console.print(result_table(result))
    low = [key for key, figure in result["figures"].items() if figure["reached"] is False]
    words = f"written to {options.out}; bars not reached: {', '.join(low) or 'none'}"
    console.print(words, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
