"""Run the built-in studies of `triptych compare` and store what they find.

Each study is a call of the command line, in a process of its own; `benchmarks/results/studies` gets
its result as soon as it is done. Runs that are there already are kept. On one busy core all studies
together take some hours; `docs/studies.md` is written from what is stored.

    python -m benchmarks.lab.studies --num-threads 1
    python -m benchmarks.lab.studies systems mplug.fusion --num-threads 1
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages.gather import ROOT, STUDIES, load_json
from triptych.cli.compare import FAILED
from triptych.core.files import write_json
from triptych.lab.definition import built_in_studies
from triptych.lab.results import RESULTS_FILE


def run_study(name: str, out: Path, flags: Sequence[str]) -> dict[str, Any]:
    """Run a study and return its results, with the command that gave them.

    Args:
        name: Of a built-in study.
        out: Folder of all studies.
        flags: Of `triptych compare`.

    Raises:
        CalledProcessError: It gave no results.
    """
    words = ["compare", name, *flags]
    command = [sys.executable, "-m", "triptych", *words, "--out", str(out / name)]
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode != FAILED:  # where single runs failed, the results name them
        done.check_returncode()
    found = load_json(out / name / RESULTS_FILE)
    origin = {name: found.pop(name) for name in ("machine", "commit")}
    output = found | {"table": table(found)}
    return {**origin, "command": " ".join(["triptych", *words]), "output": output}


def table(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what `triptych reproduce` shows of a study.

    Returns:
        By variant and score, the mean over seeds with its interval; and what a sample costs.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, variant in result["variants"].items():
        scores = {key: found for key, found in variant["scores"].items() if found is not None}
        rows[name] = {key: [s["mean"], s["low"], s["high"]] for key, s in scores.items()}
        flops = variant["cost"]["flops_per_sample"]
        rows[name]["flops_per_sample"] = None if flops is None else flops["mean"]
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run studies; the exit code is 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = tuple(built_in_studies())
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(known)}")
    parser.add_argument("--out", type=Path, default=Path("runs/studies"))
    parser.add_argument("--results", type=Path, default=STUDIES, help="folder of the JSON files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-threads", type=int, default=None, help="CPU threads; all cores")
    options = parser.parse_args(arguments)
    flags = ["--seeds", str(options.seeds)]
    if options.num_threads is not None:
        flags += ["--num-threads", str(options.num_threads)]
    failed = []
    for name in options.studies or known:
        try:
            found = run_study(name, options.out.resolve(), flags)
        except subprocess.CalledProcessError:
            failed.append(name)
            continue
        options.results.mkdir(parents=True, exist_ok=True)
        write_json(options.results / f"{name}.json", found)
    print(f"failed: {', '.join(failed) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
