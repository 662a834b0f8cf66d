"""`triptych probe`: how well a classifier on frozen features tells classes apart."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

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
from triptych.core.errors import ConfigError
from triptych.data.source import DataSourceConfig

HELP = """Classify images by the frozen features of a model's image encoder, and score that.

Data are class folders, or manifests with `image` and `label`. The strength of the penalty of the
logistic regression, or how many nearest neighbours vote, is chosen on the validation data; the
classifier then has training and validation data, and is scored on the test data.

Examples:
  triptych probe runs/mine/model --train classes/train --validation classes/val \\
    --test classes/test
  triptych probe runs/mine/model --train food-101 --train-split train --test-split test
  triptych probe runs/mine/model --train a --validation b --test c --method knn
  triptych probe runs/mine/model --train a --validation b --test c --label-pattern "_(.+)"
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeOptions:
    """What to probe, on what.

    Attributes:
        folder: A model folder; or released weights: a folder of transformers, or its hub id.
        train: Labelled images to fit the classifier on.
        test: Labelled images to score it on; if absent, those of --train, of another split.
        validation: Labelled images to choose the penalty, or the number of neighbours, on; if
            absent, those of --train if --validation-split is given, and else each fifth training
            image.
        train_split: The part to read of --train; if absent, --split.
        validation_split: The part to read of --validation; if absent, --split.
        test_split: The part to read of --test; if absent, --split.
        source: How all three are read.
        method: linear is logistic regression, knn the votes of the nearest neighbours.
        label_pattern: A regular expression whose first group is the class in a label; if absent,
            the whole label is.
        local_batch_size: Images per batch.
        max_bad_share: Largest allowed share of unreadable images.
        result: Where the numbers go.
    """

    folder: FolderArgument
    train: str
    test: str | None = None
    validation: str | None = None
    train_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    source: SourceGroup = field(default_factory=SourceOptions)
    method: Literal["linear", "knn"] = "linear"
    label_pattern: str | None = None
    local_batch_size: int = 128
    max_bad_share: float = 0.01
    result: ResultGroup = field(default_factory=ResultOptions)


def run(arguments: Sequence[str]) -> int:
    """Print a table, or JSON; and write JSON where asked."""
    options = parse(ProbeOptions, json_as_out(arguments), verb="probe", description=HELP)
    from triptych.core.machine import current_commit
    from triptych.evaluation.linear_probe import LinearProbe
    from triptych.workflows.frozen import probe_folder

    metrics, probe = probe_folder(
        options.folder,
        *_sources(options),
        method=options.method,
        label_pattern=options.label_pattern,
        local_batch_size=options.local_batch_size,
        max_bad_share=options.max_bad_share,
        on_loaded=lambda model: print(f"probing on {model.described()}", file=sys.stderr),
    )
    if not options.result.json:
        print_table(f"probe on {options.test or options.train}", metrics)
    options.result.report(
        {
            "model": str(options.folder),
            "commit": current_commit(),
            "method": options.method,
            **({"c": probe.c} if isinstance(probe, LinearProbe) else {"k": probe.k}),
            "validation_accuracy": {f"{c:.6g}": score for c, score in probe.scores.items()},
            "metrics": [asdict(metric) for metric in metrics],
        }
    )
    return 0


def _sources(
    options: ProbeOptions,
) -> tuple[DataSourceConfig, DataSourceConfig | None, DataSourceConfig]:
    """Return what to fit, to choose and to score on.

    Raises:
        ConfigError: The images to score on would be those to fit on.
    """

    def source(path: str, split: str | None) -> DataSourceConfig:
        found = options.source.source(path)
        return found if split is None else replace(found, split=split)

    train = source(options.train, options.train_split)
    test = source(options.test or options.train, options.test_split)
    if test == train and options.test is None:
        raise ConfigError(
            "name the images to score on: --test PATH, or --test-split of the data of --train"
        )
    if options.validation is None and options.validation_split is None:
        return train, None, test
    path = options.validation or options.train
    return train, source(path, options.validation_split), test
