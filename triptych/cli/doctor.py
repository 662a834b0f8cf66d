"""`triptych doctor`: what ails a run, told from its log."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from triptych.cli.parsing import ResultGroup, ResultOptions, parse

if TYPE_CHECKING:
    from triptych.train.doctor import Diagnosis

HELP = """Tell what ails a run, finished or still going on, from its metrics.jsonl.

Each finding has its evidence, the value by chance, and what to do; docs/how-to/diagnose.md lists
them. Exits with 0 if nothing is found, with 1 if something is, and with 2 if there is no log.

Examples:
  triptych doctor runs/mine
  triptych doctor runs/mine --json
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorOptions:
    """Which run.

    Attributes:
        run: A run folder, or that of stages in a row.
        result: Where the diagnosis goes.
    """

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    result: ResultGroup = field(default_factory=ResultOptions)


def run(arguments: Sequence[str]) -> int:
    """Print the diagnosis; 1 where something is found."""
    options = parse(DoctorOptions, arguments, verb="doctor", description=HELP)
    from triptych.train.doctor import diagnose
    from triptych.workflows.diagnosis import read_history, runs_in

    found = {
        folder: diagnose(read_history(folder, lambda line: print(line, file=sys.stderr)))
        for folder in runs_in(options.run)
    }
    if not options.result.json:
        for folder, diagnosis in found.items():
            print("\n".join(_lines(folder, diagnosis)))
    told = [{"run": str(folder), **diagnosis.to_dict()} for folder, diagnosis in found.items()]
    options.result.report({"runs": told})
    return int(any(diagnosis.findings for diagnosis in found.values()))


def _lines(folder: Path, diagnosis: Diagnosis) -> Iterator[str]:
    """Yield what a person reads."""
    of = "" if diagnosis.max_steps is None else f" of {diagnosis.max_steps:,}"
    number = len(diagnosis.findings)
    what = "nothing found" if not number else f"{number} finding{'s' * (number > 1)}"
    yield f"{folder}, step {diagnosis.step:,}{of}: {what}"
    for finding in diagnosis.findings:
        yield f"  {finding.title}"
        yield f"    evidence:  {finding.evidence}"
        if finding.chance is not None:
            yield f"    reference: {finding.chance:.4g} (found: {finding.value:.4g})"
        yield f"    next step: {finding.next_step}"
    if diagnosis.waiting:
        yield f"  too early to judge: {', '.join(diagnosis.waiting)}"
    if diagnosis.unread:
        numbers = ", ".join(dict.fromkeys(diagnosis.unread.values()))
        yield f"  not looked for, since the log has no {numbers}: {'; '.join(diagnosis.unread)}"
