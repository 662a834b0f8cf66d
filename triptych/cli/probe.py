"""`triptych probe`: how well a linear classifier on frozen features tells classes apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from triptych.cli.eval import print_table
from triptych.cli.parsing import (
    FolderArgument,
    ResultGroup,
    ResultOptions,
    SourceGroup,
    SourceOptions,
    json_as_out,
    parse,
)

HELP = """Fit logistic regression on the frozen features of a model's image encoder, and score it.

Data are class folders, or manifests with `image` and `label`. The strength of the penalty is chosen
on the validation data; the classifier is then fitted on both and scored on the test data.

Examples:
  triptych probe runs/mine/model --train classes/train --validation classes/val \\
    --test classes/test
  triptych probe runs/mine/model --train a --validation b --test c --label-pattern "_(.+)"
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeOptions:
    """What to probe, on what.

    Attributes:
        folder: A model folder; or released weights: a folder of transformers, or the id of one on
            the hub.
        train: Labelled images that the classifier is fitted on.
        validation: Labelled images that choose the penalty.
        test: Labelled images that it is scored on.
        source: How all three are read.
        label_pattern: A regular expression whose first group in a label is the class; the whole
            label if absent.
        local_batch_size: Images at a time.
        max_bad_share: Share of images that may be unreadable.
        result: Where the numbers go.
    """

    folder: FolderArgument
    train: str
    validation: str
    test: str
    source: SourceGroup = field(default_factory=SourceOptions)
    label_pattern: str | None = None
    local_batch_size: int = 128
    max_bad_share: float = 0.01
    result: ResultGroup = field(default_factory=ResultOptions)


def run(arguments: Sequence[str]) -> int:
    """Print a table, or JSON; and write JSON where asked."""
    options = parse(ProbeOptions, json_as_out(arguments), verb="probe", description=HELP)
    from triptych.core.machine import current_commit
    from triptych.workflows.frozen import probe_folder

    metrics, probe = probe_folder(
        options.folder,
        *(
            options.source.source(path)
            for path in (options.train, options.validation, options.test)
        ),
        label_pattern=options.label_pattern,
        local_batch_size=options.local_batch_size,
        max_bad_share=options.max_bad_share,
    )
    if not options.result.json:
        print_table(f"probe on {options.test}", metrics)
    options.result.report(
        {
            "model": str(options.folder),
            "commit": current_commit(),
            "c": probe.c,
            "validation_accuracy": {f"{c:.6g}": score for c, score in probe.scores.items()},
            "metrics": [asdict(metric) for metric in metrics],
        }
    )
    return 0
