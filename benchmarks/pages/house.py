"""How hard the code is to follow: `python -m benchmarks.pages.house [--write]`.

Counts what docs/architecture.md shows, on the machine at hand:

- files and functions of the package that one training step enters, from the command line
  (`triptych train mplug.pretrain --scale smoke`, 16 small images) to the end of the first step.
  Imports, lambdas and comprehensions are not counted; a profiler sees the rest;
- tables keyed by task: literals and `match` statements outside `triptych/tasks` that name three
  tasks or more;
- source files of the package, and test cases that pytest collects.

With --write, the numbers replace those in docs/architecture.md.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.pages.markdown import fill_blocks

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "triptych"
PAGE = ROOT / "docs" / "architecture.md"
ROW = "| {what} | {before} | {value} | {bar} |"


class _FirstStep(Exception):  # noqa: N818 - an outcome, not an error
    """The first training step is done."""


class Profiler:
    """Notes which functions of the package are entered while no module is being imported."""

    def __init__(self) -> None:
        self.entered: set[tuple[str, int, str]] = set()
        self._importing = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Take an event of sys.setprofile."""
        code = frame.f_code
        if code.co_name == "<module>":
            self._importing += {"call": 1, "return": -1}.get(event, 0)
            return
        is_ours = code.co_filename.startswith(str(PACKAGE)) and not code.co_name.startswith("<")
        if event == "call" and is_ours and not self._importing:
            self.entered.add((code.co_filename, code.co_firstlineno, code.co_qualname))


def one_step() -> tuple[int, int]:
    """Return the files and functions that one training step enters, from the command on."""
    from triptych.cli.main import main
    from triptych.train.trainer import Trainer

    profiler, step = Profiler(), Trainer._train_step

    def stop_after(self: Trainer, *arguments: Any) -> None:
        step(self, *arguments)
        sys.setprofile(None)
        raise _FirstStep

    with tempfile.TemporaryDirectory() as folder:
        manifest = _write_images(Path(folder))
        command = ["train", "mplug.pretrain", "--scale", "smoke", "--data", str(manifest)]
        Trainer._train_step = stop_after  # type: ignore[assignment, method-assign]
        try:
            sys.setprofile(profiler)
            main([*command, "--out", f"{folder}/run", "--train.progress", "off"])
        except _FirstStep:
            pass
        finally:
            sys.setprofile(None)
            Trainer._train_step = step  # type: ignore[method-assign]
    return len({file for file, _, _ in profiler.entered}), len(profiler.entered)


def _write_images(folder: Path) -> Path:
    from PIL import Image

    lines = []
    for number in range(16):
        Image.new("RGB", (64, 64), (10 * number, 20, 30)).save(folder / f"{number}.jpg")
        lines.append(json.dumps({"image": f"{number}.jpg", "caption": f"colour number {number}"}))
    manifest = folder / "pairs.jsonl"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def task_tables() -> list[str]:
    """Return where tasks are listed outside `triptych/tasks`, as file:line."""
    from triptych.tasks.registry import TASKS, evaluations

    specs = TASKS.values()
    names = {*TASKS, *evaluations(), *(spec.config.__name__ for spec in specs)}
    names |= {method for spec in specs for method in spec.serves}
    found: list[str] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if "tasks" in path.relative_to(PACKAGE).parts:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [
            f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            for node in ast.walk(tree)
            if len(names & set(_listed(node))) >= 3
        ]
    return found


def _listed(node: ast.AST) -> Iterator[str]:
    """Yield the names and strings that a literal or a match statement is keyed by."""
    keys: list[ast.AST | None] = []
    if isinstance(node, ast.Dict):
        keys = list(node.keys)
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        keys = list(node.elts)
    elif isinstance(node, ast.Match):
        keys = [case.pattern for case in node.cases]
    for key in keys:
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield key.value
        elif isinstance(key, ast.Name):
            yield key.id
        elif isinstance(key, ast.MatchClass) and isinstance(key.cls, ast.Name):
            yield key.cls.id


def test_cases() -> int:
    """Return how many test cases pytest collects."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+) tests collected", output)
    assert found, output[-500:]
    return int(found[1])


def rows() -> list[str]:
    """Return the rows of the table: what, at a864de5, now, target.

    That one file is edited for a task and for a family is what tests/architecture shows.
    """
    files, functions = one_step()
    sources = len([*PACKAGE.rglob("*.py")])
    tables = str(len(task_tables()))
    counted = [
        ("files entered by one training step", "84", str(files), "60"),
        ("functions entered by one training step", "356", str(functions), "280"),
        ("files to edit for a new task, a new family beyond its own", "15, 15", "1, 1", "1, 1"),
        ("tables that name three tasks or more, the registry apart", "19", tables, "0"),
        ("source files", "294", str(sources), "240"),
        ("test cases", "4,680", f"{test_cases():,}", "4,100"),
    ]
    return [ROW.format(what=w, before=b, value=v, bar=t) for w, b, v, t in counted]


def main() -> None:
    """Print the rows, and write them into docs/architecture.md where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="update docs/architecture.md")
    arguments = parser.parse_args()
    lines = rows()
    print("\n".join(lines))
    for table in task_tables():
        print(f"keyed by task: {table}")
    if arguments.write:
        text = PAGE.read_text(encoding="utf-8")
        new = fill_blocks(text, {"house": "\n".join(lines)})
        PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
