"""Gather the figures that this release is held to, in one file beside their bars.

Runs the other benchmarks and the two tests that give a figure, each in a process of its own, takes
the rest from the demo's `results.json`, writes `benchmarks/results/foundation.json` and prints a
table. The whole output of each part is stored beside that file as `PART.json`; `--skip PART` takes
it from there. A figure that nobody gives, or gives as no number, is an error and the file is not
written. A bar that is not reached is no error: the table and the file say so.

    triptych demo --out runs/demo
    python benchmarks/foundation.py --demo runs/demo/results.json
    python benchmarks/foundation.py --demo runs/demo/results.json --skip beam precision
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from triptych.core.errors import DataError
from triptych.core.files import write_json
from triptych.core.machine import current_commit, describe_machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
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

Figures = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure must reach: `text` says it, `is_reached` decides it from all values."""

    text: str
    is_reached: Callable[[Mapping[str, Any]], bool]


def at_least(key: str, limit: float) -> Bar:
    """Return the bar of a figure that should be large."""
    return Bar(f">= {limit:g}", lambda values: bool(values[key] >= limit))


def at_most(key: str, limit: float) -> Bar:
    """Return the bar of a figure that should be small."""
    return Bar(f"<= {limit:g}", lambda values: bool(values[key] <= limit))


BARS = {
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
}
"""By figure; those on the compositional split are reported without a bar."""

DEMO_KEYS = ("demo_minutes", *SCORES, *(f"compositional_{key}" for key in SCORES))


@dataclass(frozen=True, slots=True)
class Part:
    """Something to run from the root of the repository.

    Attributes:
        name: Also of its file among the results.
        arguments: What Python is given.
        keys: Figures that it yields.
        read: Makes figures and details of the exit code and the standard output.
    """

    name: str
    arguments: tuple[str, ...]
    keys: tuple[str, ...]
    read: Callable[[int, str], dict[str, Any]]

    @property
    def command(self) -> str:
        """What anyone can type."""
        return " ".join(("python", *self.arguments))


def read_json_line(code: int, output: str) -> dict[str, Any]:
    """Return the JSON object in the last line that holds one.

    Raises:
        DataError: The program failed, or printed none.
    """
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if code != 0 or not lines:
        raise DataError(f"exit code {code}, {len(lines)} lines of JSON")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


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


PARTS = (
    Part("scenes", ("benchmarks/scenes.py",), ("scenes_per_s",), read_json_line),
    Part("beam", ("benchmarks/beam.py",), ("beam_cache_speedup",), read_json_line),
    Part("precision", ("benchmarks/precision.py",), ("bf16_speedup",), read_json_line),
    Part("attention", ("benchmarks/attention.py",), (), read_json_line),
    Part("resume_kills", ("-m", "tests.recipes.kills"), ("resume_kills",), read_json_line),
    Part(
        "own_data",
        ("-m", "pytest", "-q", "tests/recipes/test_own_data.py"),
        ("own_data",),
        read_own_data,
    ),
)


def run_part(part: Part, machine: dict[str, str], commit: str) -> dict[str, Any]:
    """Run a part and return the content of its file.

    Raises:
        DataError: It failed; the message ends with what it printed last.
    """
    done = subprocess.run(
        [sys.executable, *part.arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    try:
        output = part.read(done.returncode, done.stdout)
    except (DataError, ValueError) as error:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise DataError(f"{part.command}: {error}\n{tail}") from error
    return {"machine": machine, "commit": commit, "command": part.command, "output": output}


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: There is no such file, or it holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: run what writes it first") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds a {type(found).__name__}, not an object")
    return found


def part_figures(part: Part, stored: Mapping[str, Any]) -> Figures:
    """Return the figures of a part's file, each with what it takes to measure it again."""
    output = stored["output"]
    protocol = {"protocol": output["protocol"]} if "protocol" in output else {}
    return {
        key: {
            "value": output.get(key),
            "command": stored["command"],
            "commit": stored["commit"],
            "machine": stored["machine"],
            **protocol,
        }
        for key in part.keys
    }


def demo_figures(results: Mapping[str, Any]) -> Figures:
    """Return the figures of the demo.

    Raises:
        DataError: It was run at another scale than the bars are for.
    """
    if results.get("scale") != DEMO_SCALE:
        raise DataError(
            f"the demo ran at scale {results.get('scale')!r}; the bars are for {DEMO_SCALE!r}: "
            "run `triptych demo --out runs/demo`"
        )
    origin = {"commit": results["commit"], "machine": results["machine"]}
    return {key: figure | origin for key, figure in results["figures"].items()}


def assemble(figures: Figures, machine: Mapping[str, str], commit: str) -> dict[str, Any]:
    """Put figures beside their bars; name commit and machine only where they differ.

    Args:
        figures: By key, each with value, command, commit and machine; those that the table asks
            for come first in the result, the others follow.
        machine: Of the file.
        commit: Of the file.

    Raises:
        DataError: Figures are missing, or have no value; the message names all of them.
    """
    asked = list(dict.fromkeys([*DEMO_KEYS, *BARS]))
    values = {key: figure.get("value") for key, figure in figures.items()}
    missing = [key for key in asked if not is_value(values.get(key))]
    if missing:
        raise DataError(f"no value for {', '.join(missing)}")
    merged: Figures = {}
    for key in [*asked, *(key for key in figures if key not in asked)]:
        bar = BARS.get(key)
        merged[key] = {k: v for k, v in figures[key].items() if k not in ("commit", "machine")} | {
            "bar": bar.text if bar else None,
            "reached": bar.is_reached(values) if bar else None,
        }
        for name, common in (("commit", commit), ("machine", machine)):
            if figures[key][name] != common:
                merged[key][name] = figures[key][name]
    return {"machine": dict(machine), "commit": commit, "figures": merged}


def is_value(value: object) -> bool:
    """Say whether something can stand as a figure: a finite number or a word."""
    if isinstance(value, str):
        return value != ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def result_table(result: Mapping[str, Any]) -> Table:
    """Return the asked figures with their bars, for the terminal."""
    table = Table("figure", "value", "bar", "reached", "command")
    for key in dict.fromkeys([*DEMO_KEYS, *BARS]):
        figure = result["figures"][key]
        value = figure["value"]
        word = {True: "yes", False: "[bold red]no[/bold red]", None: ""}[figure["reached"]]
        table.add_row(
            key,
            f"{value:.4g}" if isinstance(value, float) else str(value),
            figure["bar"] or "reported",
            word,
            figure["command"],
        )
    return table


def collect(
    folder: Path, skip: Sequence[str], machine: dict[str, str], commit: str, console: Console
) -> Figures:
    """Run all parts but those to skip, store their outputs in a folder, and return their figures.

    A part that fails does not keep the others from running.

    Raises:
        DataError: Parts failed, or one to skip was never stored; the message holds every reason.
    """
    figures: Figures = {}
    problems = []
    for part in PARTS:
        path = folder / f"{part.name}.json"
        try:
            if part.name in skip:
                console.print(f"{part.name}: from {path}", soft_wrap=True)
            else:
                console.print(f"{part.name}: {part.command}", soft_wrap=True)
                write_json(path, run_part(part, machine, commit))
            figures |= part_figures(part, load_json(path))
        except DataError as error:
            problems.append(f"{part.name}: {error}")
    if problems:
        raise DataError("\n".join(problems))
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--demo", type=Path, required=True, help="results.json of the tiny demo")
    parser.add_argument("--skip", nargs="*", default=[], choices=names, help="take as stored")
    parser.add_argument("--out", type=Path, default=RESULTS / "foundation.json")
    options = parser.parse_args(arguments)
    console = Console()
    machine, commit = describe_machine(), current_commit()  # before results change the checkout
    if commit.endswith("-dirty"):
        console.print("[yellow]tracked files were changed: the commit will say -dirty[/yellow]")
    try:
        demo = demo_figures(load_json(options.demo))
        parts = collect(options.out.parent, options.skip, machine, commit, console)
        result = assemble(demo | parts, machine, commit)
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
