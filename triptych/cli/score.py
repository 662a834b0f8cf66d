"""`triptych score`: score a file of predictions against labelled data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from triptych.cli.eval import print_table
from triptych.cli.parsing import ResultGroup, ResultOptions, SourceGroup, SourceOptions, parse

HELP = """Score a file of predictions against labelled data.

The file is one of `triptych predict`, or one of any system in an official form.

Examples:
  triptych score answers.jsonl --data test_with_answers.jsonl
  triptych score results.json --data v2_OpenEnded_mscoco_val2014_questions.json
  triptych score RTE.tsv --task classification --data RTE/dev.tsv --out scores.json
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreOptions:
    """What to score.

    Attributes:
        file: Predictions, in our form or in an official one.
        data: Labelled data.
        task: What was predicted; if absent, what the file says or what its form is for.
        format: The form of the file, as for `triptych predict`; if absent, it is recognised.
        allow_missing: Score what is predicted, where samples have no prediction.
        java_metrics: Captions: also METEOR or SPICE, Java programs of `pip install triptych[coco]`.
        source: How the data is read.
        result: Where the numbers go.
    """

    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    data: Annotated[str, tyro.conf.arg(metavar="PATH")]
    task: str | None = None
    format: str | None = None
    allow_missing: bool = False
    java_metrics: tuple[Literal["meteor", "spice"], ...] = ()
    source: SourceGroup = field(default_factory=SourceOptions)
    result: ResultGroup = field(default_factory=ResultOptions)


def run(arguments: Sequence[str]) -> int:
    """Print a table, or JSON; and write JSON where asked."""
    options = parse(ScoreOptions, arguments, verb="score", description=HELP)
    from triptych.core.machine import current_commit
    from triptych.workflows.score import score_file

    scored = score_file(
        options.file,
        options.source.source(options.data),
        task=options.task,
        form=options.format,
        allow_missing=options.allow_missing,
        java_metrics=options.java_metrics,
    )
    for note in scored.notes:
        print(note, file=sys.stderr)
    if not options.result.json:
        print_table(f"{scored.task} of {options.file} on {options.data}", scored.values)
        if scored.header is not None:
            print(scored.header.protocol)
    options.result.report(
        {
            "predictions": str(options.file),
            "form": scored.form,
            "task": scored.task,
            "made_by": None if scored.header is None else asdict(scored.header),
            "notes": scored.notes,
            "commit": current_commit(),
            "scores": [
                {"data": options.data, "metrics": [asdict(value) for value in scored.values]}
            ],
        }
    )
    return 0
