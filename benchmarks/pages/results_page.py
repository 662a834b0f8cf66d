"""docs/results.md, and the table of README: figures and their targets.

The page says command, commit and machine of each figure that the gatherers leave in
`benchmarks/results`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.pages.engine import ENGINE
from benchmarks.pages.flava import FLAVA
from benchmarks.pages.foundation import FOUNDATION
from benchmarks.pages.gather import Benchmark, load_json
from benchmarks.pages.lab import LAB
from benchmarks.pages.markdown import (
    fill_blocks,
    format_value,
    machine_name,
    make_row,
    make_table,
)
from benchmarks.pages.mplug import MPLUG
from benchmarks.pages.reliability import RELIABILITY
from benchmarks.pages.serving import SERVING
from benchmarks.pages.speed import SPEED
from benchmarks.pages.tasks import TASKS
from benchmarks.pages.vlmo import VLMO

BENCHMARKS = (FOUNDATION, MPLUG, VLMO, FLAVA, ENGINE, TASKS, SERVING, RELIABILITY, LAB, SPEED)

SMALL_DEMO = "demo_small.json"
VERDICTS = {True: "met", False: "**not met**", None: "not measured"}
SMALL_TITLE = "The longer demo: twice the images and steps"
README_ROWS = (
    ("demo_minutes", "the whole demo (`triptych demo --scale tiny`), minutes"),
    ("i2t_r1", "image-to-text recall at 1 among 500 unseen scenes, ITC alone"),
    ("t2i_r1", "text-to-image, the same"),
    ("i2t_r1_itm", "image-to-text, re-ranked by ITM"),
    ("t2i_r1_itm", "text-to-image, re-ranked by ITM"),
    ("caption_objects", "objects that captions name with the right size, colour and shape"),
    ("vqa", "VQA accuracy"),
    ("grounding", "boxes with an IoU of at least 0.5"),
    ("bf16_speedup", "speed-up of a training step, bf16 over fp32 with torch's SDPA"),
    ("beam_cache_speedup", "speed-up of beam search by caches, 5 beams, 20 tokens, base size"),
    ("scenes_per_s", "scenes generated per second, 64 px, one core"),
    ("resume_kills", "runs of 10 that resume bitwise equal after kill -9"),
)
"""The figures that README shows, in its words."""

HEAD = """# Results

Every measured figure, with its target: met or not met. `python -m benchmarks.pages` writes this
page from [benchmarks/results](../benchmarks/results), which also has each figure's interval and
protocol; [benchmarks/README.md](../benchmarks/README.md) says how to measure again. Gains of VLMo
and FLAVA are the main differences of [studies](studies.md) over three seeds, with 95 % intervals.
Machines have two cores and no GPU; their letters are explained at the end. The commit is the one
that was measured.
"""


def section(benchmark: Benchmark, result: Mapping[str, Any], machines: dict[str, str]) -> str:
    """Return the table of one benchmark.

    Args:
        benchmark: Has the targets.
        result: Content of its file.
        machines: Letters of machines by name; new ones are added.
    """
    rows = []
    for key, what in benchmark.what.items():
        figure = result["figures"].get(key)
        if figure is None:  # newer than the file
            rows.append([what, "(not measured yet)", "", "", ""])
            continue
        name = machine_name(figure.get("machine", result["machine"]))
        letter = machines.setdefault(name, chr(ord("A") + len(machines)))
        bar = figure["bar"]
        command = f"`{figure['command']}`"
        commit = figure.get("commit", result["commit"])[:9]
        verdict = f"{bar}: {VERDICTS[figure['reached']]}" if bar else ""
        if "precision" in figure:
            what += f", {figure['precision']}"
        rows.append([what, format_value(figure), verdict, command, f"{commit} {letter}"])
    head = ["what", "value", "target", "command", "commit, machine"]
    return f"## {benchmark.title}\n\n{make_table(head, rows)}"


def small_demo(path: Path, machines: dict[str, str]) -> str:
    """Return the table of the longer demo, from its `results.json` without the configs.

    Args:
        path: That, with a "note" on how it was run.
        machines: Letters of machines by name; new ones are added.
    """
    found = load_json(path)
    letter = machines.setdefault(machine_name(found["machine"]), chr(ord("A") + len(machines)))
    figures = found["figures"]
    rows = [
        [what, format_value(figures[key]), format_value(figures[f"compositional_{key}"])]
        for key, what in FOUNDATION.what.items()
        if f"compositional_{key}" in figures
    ]
    command = figures["demo_minutes"]["command"]
    head = f"`{command}`, {found['commit'][:9]} {letter}: {found['note']}"
    table = make_table(["what", "value", "compositional"], rows)
    return f"## {SMALL_TITLE}\n\n{head}\n\n{table}"


def results_page(folder: Path, _: str = "") -> str:
    """Return docs/results.md; a benchmark without a file in the folder is said to have none.

    Raises:
        DataError: A file is not JSON.
    """
    machines: dict[str, str] = {}
    parts = [HEAD.strip()]
    for benchmark in BENCHMARKS:
        path = folder / f"{benchmark.name}.json"
        if path.is_file():
            parts.append(section(benchmark, load_json(path), machines))
        else:
            parts.append(f"## {benchmark.title}\n\nNot measured yet.")
        small = folder / SMALL_DEMO
        if benchmark is FOUNDATION and small.is_file():
            parts.append(small_demo(small, machines))
    letters = "\n".join(f"- {letter}: {name}" for name, letter in machines.items())
    return "\n\n".join([*parts, f"## Machines\n\n{letters}"]) + "\n"


def readme(folder: Path, old: str) -> str:
    """Return README with the figures of a folder's `foundation.json` between its markers.

    Raises:
        DataError: The file is missing, or README has no block for the table.
    """
    return fill_blocks(old, {"results": readme_table(load_json(folder / "foundation.json"))})


def whole_demo(folder: Path, _: str = "") -> str:
    """Return what the whole tiny demo reached, which the report of a shortened one shows."""
    result = load_json(folder / "foundation.json")
    figures = result["figures"]
    demo = figures["demo_minutes"]
    machine = demo.get("machine", result["machine"])
    whole = {
        "minutes": demo["value"],
        **{name: machine[name] for name in ("CPU", "cores", "bf16")},
        "commit": demo.get("commit", result["commit"]),
        "figures": {
            key: figure["value"]
            for key, figure in figures.items()
            if figure["command"] == demo["command"] and key != "demo_minutes"
        },
    }
    return json.dumps(whole, indent=1) + "\n"


def readme_table(result: Mapping[str, Any]) -> str:
    """Return the table of README, and what it says below it."""
    figures = result["figures"]

    def cell(value: float | None) -> str:
        return "" if value is None else format_value({"value": value})

    lines = ["| what | measured | compositional | chance | blind | target |", "|---" * 6 + "|"]
    for key, text in README_ROWS:
        figure, other = figures[key], figures.get(f"compositional_{key}", {})
        values = (figure["value"], other.get("value"), figure.get("chance"), figure.get("blind"))
        target = f"{figure['bar']} {VERDICTS[figure['reached']].strip('*')}"
        lines.append(make_row([text, *map(cell, values), target]))
    demo = figures["demo_minutes"]
    machine, commit = (demo.get(name, result[name]) for name in ("machine", "commit"))
    below = (
        f"The demo ran on {machine['cores']} cores of {machine['CPU']} without a GPU, at commit "
        f"`{commit[:12]}`; [docs/results.md](docs/results.md) lists commit and machine of each "
        "figure, and `benchmarks/results/foundation.json` "
        "its interval and protocol. Chance draws a training answer, box or caption at random; "
        "blind is the majority answer of the question type, the mean box, or the most frequent "
        "caption. Each scene of the compositional split shows at least one pair of colour and "
        "shape that never occurs in training."
    )
    return "\n".join([*lines, "", below])
