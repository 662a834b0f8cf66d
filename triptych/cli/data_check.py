"""`triptych data check`: what is in a dataset, and what is bad, before training finds out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from triptych.cli.parsing import (
    ResultGroup,
    ResultOptions,
    SourceGroup,
    SourceOptions,
    json_as_out,
    parse,
    shows_progress,
)
from triptych.core.errors import ConfigError
from triptych.data.skips import TRAIN_FLAG, share_to_allow
from triptych.data.source import DataSourceConfig

if TYPE_CHECKING:
    from triptych.data.check import CheckReport

HELP = """Open every image of a dataset; report counts, sizes, lengths, duplicates and bad entries.

Exits with 1 if more entries are bad than training allows, or a shard is damaged.

Examples:
  triptych data check my.jsonl
  triptych data check annotations/captions_val2014.json --image-root val2014 --out report.json
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckOptions:
    """What to check.

    Attributes:
        manifest: A manifest (.jsonl, .csv), an annotation file of a public dataset, a folder of
            class folders or of .tar shards, or a shard pattern.
        source: How it is read.
        max_bad_share: Largest allowed share of bad samples, 0 to 1 (in training:
            data.max_bad_share).
        result: Where the report goes.
        skipped: Also list every bad entry in this file, as JSON Lines.
        num_threads: Images decoded in parallel.
    """

    manifest: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MANIFEST")]]
    source: SourceGroup = field(default_factory=SourceOptions)
    max_bad_share: float = 0.01
    result: ResultGroup = field(default_factory=ResultOptions)
    skipped: Path | None = None
    num_threads: int = 2


def run(arguments: Sequence[str]) -> int:
    """Print the report; 1 where too much is bad."""
    options = parse(CheckOptions, json_as_out(arguments), verb="data check", description=HELP)
    if not 0 <= options.max_bad_share <= 1:
        raise ConfigError(f"max_bad_share = {options.max_bad_share}: must be from 0 to 1")
    report = _check(options.source.source(options.manifest), options.num_threads)
    if not options.result.json:
        print("\n".join(report.lines()))
    options.result.report(report.to_dict())
    if options.skipped is not None:
        report.write_skipped(options.skipped)
    if report.num_damaged:
        print(
            f"triptych: {report.num_damaged:,} shards are damaged or missing: copy them again, or "
            "write them again with the same `triptych data shard`",
            file=sys.stderr,
        )
        return 1
    if report.bad_share <= options.max_bad_share:
        return 0
    print(
        f"triptych: {report.bad_share:.2%} is bad, more than the {options.max_bad_share:.2%} that "
        "is allowed: training would stop. Fix or remove what is listed, or allow more with "
        f"{TRAIN_FLAG} {share_to_allow(report.bad_share):g}",
        file=sys.stderr,
    )
    return 1


def _check(source: DataSourceConfig, num_threads: int) -> CheckReport:
    """Run the check under a progress bar."""
    from rich.console import Console
    from rich.progress import Progress

    from triptych.data.check import check_sources

    with Progress(
        console=Console(stderr=True), transient=True, disable=not shows_progress()
    ) as progress:
        bar = progress.add_task("opening images", total=None)
        return check_sources(
            [source],
            num_threads=num_threads,
            on_progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
