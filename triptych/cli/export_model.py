"""`triptych export-model`: the model folder of a run as of one of its checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from triptych.cli.parsing import parse
from triptych.core.errors import ConfigError

HELP = """Write a model folder from a checkpoint of a run, also of one that is training.

The run folder is only read. The result is what the run writes at its end as RUN_FOLDER/model,
but for the card's table of retrieval before and after.

Examples:
  triptych export-model runs/mine --out models/now
  triptych export-model runs/mine --step 5000 --out models/step_5000
  triptych export-model runs/mine --best --out models/best
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportModelOptions:
    """What to write.

    Attributes:
        run_folder: The run, such as runs/mine.
        out: The new model folder, outside of the run.
        step: Optimizer steps of the checkpoint; the newest if absent.
        best: Take the best model so far by validation, of a run with held-out data.
    """

    run_folder: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN_FOLDER")]]
    out: Path
    step: int | None = None
    best: bool = False


def run(arguments: Sequence[str]) -> int:
    """Export, and print what was written."""
    options = parse(ExportModelOptions, arguments, verb="export-model", description=HELP)
    from triptych.workflows.exporting import export_best, export_model

    if options.best:
        if options.step is not None:
            raise ConfigError(f"--best and --step {options.step}: name one of the two")
        export_best(options.run_folder, options.out)
        print(f"model: {options.out} (the best by validation)")
        return 0
    step = export_model(
        options.run_folder,
        options.out,
        step=options.step,
        warn=lambda message: print(message, file=sys.stderr),
    )
    print(f"model: {options.out} (step {step})")
    return 0
