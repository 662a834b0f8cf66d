"""Run the parts of a benchmark, store their outputs, and compare their figures with targets.

Each part runs in a process of its own, and its whole output is stored beside the result. `--skip
PART` takes a part as it is stored; `--only PART` runs that and takes the others as they are stored.
A figure that nobody gives, or gives as no number, is an error, and the result is not written. A
target that is not met is no error: the table and the file say so. Nor is a figure that this machine
cannot give, if its part says why under `not_measured`: it has no value and no verdict.
"""

from __future__ import annotations

import argparse
import json
import math
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

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"

STUDIES = RESULTS / "studies"
"""What the built-in studies of `triptych compare` found."""

Figures = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure must reach: `text` says it, `is_reached` decides it from all values."""

    text: str
    is_reached: Callable[[Mapping[str, Any]], bool]


def at_least(key: str, limit: float) -> Bar:
    """Return the target of a figure that should be large."""
    return Bar(f">= {limit:g}", lambda values: bool(values[key] >= limit))


def at_most(key: str, limit: float) -> Bar:
    """Return the target of a figure that should be small."""
    return Bar(f"<= {limit:g}", lambda values: bool(values[key] <= limit))


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
    read: Callable[[int, str], dict[str, Any]] = read_json_line

    @property
    def command(self) -> str:
        """What anyone can type."""
        return " ".join(("python", *self.arguments))


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """What is measured of a system, and what it must reach.

    Attributes:
        name: Of its result among the results.
        title: Of its section of docs/results.md.
        what: Each figure in words, in the order of the page; others are only in the files.
        parts: What to run.
        bars: By figure; the others are reported without a target.
        prefix: Begins the names of the parts' files.
        details: What stands beside a figure where its part gives it.
        extra: Keys that must be there beside those of the bars.
    """

    name: str
    title: str
    what: Mapping[str, str]
    parts: tuple[Part, ...]
    bars: Mapping[str, Bar]
    prefix: str = ""
    details: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    def stored_path(self, folder: Path, part: Part) -> Path:
        """Return the file of a part's whole output."""
        return folder / f"{self.prefix}{part.name}.json"

    @property
    def asked(self) -> list[str]:
        """The figures that must be there, in the order of the table."""
        given = [key for part in self.parts for key in part.keys]
        return list(dict.fromkeys([*self.extra, *self.bars, *given]))


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


def part_figures(part: Part, stored: Mapping[str, Any], details: Sequence[str] = ()) -> Figures:
    """Return the figures of a part's file, each with what it takes to measure it again."""
    output = stored["output"]
    names = ("protocol", "not_measured", *details)
    kept = {name: output[name] for name in names if name in output}
    return {
        key: {
            "value": output.get(key),
            "command": stored["command"],
            "commit": stored["commit"],
            "machine": stored["machine"],
            **kept,
        }
        for key in part.keys
    }


def study_figures(studies: Mapping[str, str]) -> Figures:
    """Return figures that stored studies give: the differences of their main comparisons.

    Args:
        studies: By figure, the study.

    Raises:
        DataError: One is not stored.
    """
    figures: Figures = {}
    for key, name in studies.items():
        stored = load_json(STUDIES / f"{name}.json")
        main = main_comparison(stored)
        figures[key] = {
            "value": main["mean"],
            **{end: main[end] for end in ("low", "high") if main[end] is not None},
            "protocol": f"{main['first']} minus {main['second']}, {main['score']}: "
            f"{stored['output']['protocol']}",
            **{name: stored[name] for name in ("command", "commit", "machine")},
        }
    return figures


def main_comparison(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the main comparison of a stored study."""
    rows: list[Mapping[str, Any]] = stored["output"]["comparisons"]
    return next(row for row in rows if row["main"])


def told_apart(folder: Path) -> list[str]:
    """Return the stored studies of three seeds or more whose main comparison excludes zero."""
    stored = {path.stem: load_json(path) for path in sorted((folder / STUDIES.name).glob("*.json"))}
    enough = {name: s for name, s in stored.items() if s["output"]["seeds"] >= 3}
    return [name for name, s in enough.items() if main_comparison(s)["tells"]]


def collect(
    benchmark: Benchmark,
    folder: Path,
    run: Sequence[str],
    machine: dict[str, str],
    commit: str,
    console: Console,
) -> Figures:
    """Run the named parts, take the others as they are stored, and return all figures.

    A part that fails does not keep the others from running.

    Raises:
        DataError: Parts failed, or were never stored; the message holds every reason.
    """
    figures: Figures = {}
    problems = []
    for part in benchmark.parts:
        path = benchmark.stored_path(folder, part)
        try:
            if part.name in run:
                console.print(f"{part.name}: {part.command}", soft_wrap=True)
                write_json(path, run_part(part, machine, commit))
            else:
                console.print(f"{part.name}: from {path}", soft_wrap=True)
            figures |= part_figures(part, load_json(path), benchmark.details)
        except DataError as error:
            problems.append(f"{part.name}: {error}")
    if problems:
        raise DataError("\n".join(problems))
    return figures


def assemble(
    benchmark: Benchmark, figures: Figures, machine: Mapping[str, str], commit: str
) -> dict[str, Any]:
    """Put figures beside their targets; name commit and machine only where they differ.

    Args:
        benchmark: Says what is asked for and what the targets are.
        figures: By key, each with value (or `not_measured`), command, commit and machine; those
            that are asked for come first in the result, the others follow.
        machine: Of the file.
        commit: Of the file.

    Raises:
        DataError: Figures are missing, or have no value; the message names all of them.
    """
    values = {key: figure.get("value") for key, figure in figures.items()}
    excused = {key for key, figure in figures.items() if figure.get("not_measured")}
    missing = [k for k in benchmark.asked if k not in excused and not is_value(values.get(k))]
    if missing:
        raise DataError(f"no value for {', '.join(missing)}")
    merged: Figures = {}
    for key in dict.fromkeys([*benchmark.asked, *figures]):
        bar = benchmark.bars.get(key)
        merged[key] = {k: v for k, v in figures[key].items() if k not in ("commit", "machine")} | {
            "bar": bar.text if bar else None,
            "reached": bar.is_reached(values) if bar and key not in excused else None,
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


def result_table(benchmark: Benchmark, result: Mapping[str, Any]) -> Table:
    """Return the asked figures with their bars, for the terminal."""
    table = Table("figure", "value", "bar", "reached", "command")
    words = {True: "yes", False: "[bold red]no[/bold red]", None: ""}
    for key in benchmark.asked:
        figure = result["figures"][key]
        value = figure["value"]
        if "not_measured" in figure:
            value = f"not measured: {figure['not_measured']}"
        table.add_row(
            key,
            f"{value:.4g}" if isinstance(value, float) else str(value),
            figure["bar"] or "reported",
            words[figure["reached"]],
            figure["command"],
        )
    return table


def build_parser(benchmark: Benchmark, doc: str | None) -> argparse.ArgumentParser:
    """Return the command line of a benchmark."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in benchmark.parts]
    parser.add_argument("--only", nargs="*", choices=names, help="run these, the rest as stored")
    parser.add_argument("--skip", nargs="*", default=[], choices=names, help="take as stored")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{benchmark.name}.json")
    return parser


def gather(
    benchmark: Benchmark, options: argparse.Namespace, others: Callable[[], Figures] = dict
) -> int:
    """Measure what the options ask for, write the result and print its table.

    Args:
        benchmark: What to measure.
        options: Of `build_parser`.
        others: Returns figures that come from elsewhere.

    Returns:
        Exit code: 1 if a figure is missing.
    """
    names = [part.name for part in benchmark.parts] if options.only is None else options.only
    run = [name for name in names if name not in options.skip]
    console = Console()
    machine, commit = describe_machine(), current_commit()  # before results change the checkout
    if commit.endswith("-dirty"):
        console.print("[yellow]tracked files were changed: the commit will say -dirty[/yellow]")
    try:
        found = others()
        parts = collect(benchmark, options.out.parent, run, machine, commit, console)
        result = assemble(benchmark, found | parts, machine, commit)
    except DataError as error:
        console.print(str(error), markup=False, style="red", soft_wrap=True)
        return 1
    write_json(options.out, result)
    console.print(result_table(benchmark, result))
    low = [key for key, figure in result["figures"].items() if figure["reached"] is False]
    unknown = [key for key, figure in result["figures"].items() if "not_measured" in figure]
    words = f"written to {options.out}; targets not met: {', '.join(low) or 'none'}"
    words += f"; not measured: {', '.join(unknown)}" if unknown else ""
    console.print(words, soft_wrap=True)
    return 0
