"""`triptych data check`: what is in a dataset, and what is bad, before training finds out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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

if TYPE_CHECKING:
    from triptych.data.check import CheckReport, CheckSettings
    from triptych.data.source import DataSourceConfig

HELP = """Open every image of a dataset; report counts, sizes, bad entries, and what harms training.

Finds copies and near copies of images, images and captions that are also in other data, blank and
tiny images, repeated and boilerplate captions, and captions that are too long or in another script.
Exits with 1 if more entries are bad than training allows, or a shard is damaged.

Examples:
  triptych data check my.jsonl
  triptych data check annotations/captions_val2014.json --image-root val2014 --out report.json
  triptych data check train.jsonl --against test.jsonl --write clean.jsonl --html check.html
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
        against: Data that must not share images with this, such as the test split.
        against_split: The part of it to read if its file has several.
        html: Also write a page with thumbnails to this file.
        write: Also write a manifest without what is bad, copied or leaked; what is excluded is
            listed in a file beside it.
        model: A model folder; its tokenizer and text length decide which captions are too long. If
            absent, those of more than 30 words are.
        batch: Pairs of the batch in which false negatives are counted.
        num_threads: Images decoded in parallel.
    """

    manifest: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MANIFEST")]]
    source: SourceGroup = field(default_factory=SourceOptions)
    max_bad_share: float = 0.01
    result: ResultGroup = field(default_factory=ResultOptions)
    skipped: Path | None = None
    against: str | None = None
    against_split: str | None = None
    html: Path | None = None
    write: Path | None = None
    model: str | None = None
    batch: int = 256
    num_threads: int = 2


def run(arguments: Sequence[str]) -> int:
    """Print the report; 1 where too much is bad."""
    options = parse(CheckOptions, json_as_out(arguments), verb="data check", description=HELP)
    if not 0 <= options.max_bad_share <= 1:
        raise ConfigError(f"max_bad_share = {options.max_bad_share}: must be from 0 to 1")
    if options.batch < 2:
        raise ConfigError(f"batch = {options.batch}: must be at least 2")
    if options.against_split is not None and options.against is None:
        raise ConfigError("against-split says which part to read: name the file with --against")
    report = _check(options)
    if not options.result.json:
        print("\n".join(report.lines()))
    options.result.report(report.to_dict())
    if options.skipped is not None:
        report.write_skipped(options.skipped)
    _write(report, options)
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


def _write(report: CheckReport, options: CheckOptions) -> None:
    """Write the page and the clean manifest that the options ask for, and say so on stderr."""
    from triptych.data.doctor.clean import EXCLUDED, write_clean
    from triptych.report.check_page import write_check_page

    if options.html is not None:
        write_check_page(options.html, report)
        print(f"wrote {options.html}", file=sys.stderr)
    if options.write is not None:
        kept = write_clean(options.write, report.records, report.excluded())
        lost = report.num_records - kept
        print(
            f"wrote {options.write} with {kept:,} records; {lost:,} excluded, as listed in "
            f"{options.write}{EXCLUDED}",
            file=sys.stderr,
        )


def _settings(options: CheckOptions) -> CheckSettings:
    """Return how the data is checked; of a model only tokenizer and text length are used."""
    from triptych.data.caption_cleaning import MAX_WORDS
    from triptych.data.check import CheckSettings

    against: tuple[DataSourceConfig, ...] = ()
    if options.against is not None:
        source = replace(options.source, split=options.against_split)
        against = (source.source(options.against),)
    length, limit = None, MAX_WORDS
    if options.model is not None:
        from triptych.serving.loading import load_model

        loaded = load_model(options.model)
        limit = loaded.settings.limits.caption

        def length(caption: str) -> int:
            return len(loaded.tokenizer.encode([caption.lower()], max_tokens=limit + 1)[0])

    return CheckSettings(
        against=against,
        batch=options.batch,
        length=length,
        limit=limit,
        num_threads=options.num_threads,
    )


def _check(options: CheckOptions) -> CheckReport:
    """Run the check under a progress bar."""
    from rich.progress import Progress

    from triptych.core.console import Console
    from triptych.data.check import check_sources

    settings = _settings(options)
    with Progress(
        console=Console(stderr=True), transient=True, disable=not shows_progress()
    ) as progress:
        bar = progress.add_task("opening images", total=None)
        return check_sources(
            [options.source.source(options.manifest)],
            settings,
            on_progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
