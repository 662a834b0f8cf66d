"""`triptych suite`: all benchmarks of a paper on the data at hand."""

from __future__ import annotations

import json as json_module
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from triptych.cli.parsing import parse
from triptych.core.errors import ConfigError

if TYPE_CHECKING:
    from triptych.report.data import ScoreRow
    from triptych.workflows.scoring import Outcome
    from triptych.workflows.suite import SuiteResult

REPORT = "report.html"

HELP = """Score a model on all benchmarks of a paper, as far as the data and the models at hand allow.

ROOT holds the data sets in their official layouts, under the folder names that `triptych data list`
shows: coco/, flickr30k/, vqav2/, glue/CoLA/ and so on. Each benchmark is scored, or the output says
which file or which model is missing, or why this model cannot do it. Benchmarks that need a
fine-tuned model take it from --models, or fine-tune MODEL with --train; zero-shot retrieval and
probes take MODEL itself. Writes results.json and report.html into --out. The same command goes on
where it was interrupted; what is done with the same model and data is not done again.

Examples:
  triptych suite glue runs/flava/model --data /datasets --train --scale base
  triptych suite mplug runs/pretrain/model --data /datasets --models runs/tuned
  triptych suite flava flava-full --data /datasets --limit 100
"""  # noqa: E501 - the first paragraph is one line of help


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteOptions:
    """What to score, on what.

    Attributes:
        suite: flava, glue, vlmo or mplug.
        folder: The pre-trained model; without one, only the models in --models are scored.
        data: Folder of the data sets.
        models: Folder of fine-tuned models: NAME or NAME/model for each NAME in the output, such as
            vqav2 and coco_retrieval.
        train: Fine-tune MODEL for what --models lacks.
        scale: Scale of the recipes that fine-tune; base and large have the papers' settings.
        out: Receives models, results.json and report.html; runs/suite-SUITE if absent.
        limit: Use only so many records of each part.
        max_steps: Fine-tune for so many steps at most.
        num_threads: CPU threads of training; if absent, torch chooses.
        json: Print the results as JSON instead of a table.
    """

    suite: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="flava|glue|vlmo|mplug")]]
    folder: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="MODEL")]] = None
    data: Path
    models: Path | None = None
    train: bool = False
    scale: Literal["smoke", "tiny", "small", "base", "large"] = "base"
    out: Path | None = None
    limit: int | None = None
    max_steps: int | None = None
    num_threads: int | None = None
    json: bool = False


def run(arguments: Sequence[str]) -> int:
    """Score everything and print the table."""
    options = parse(SuiteOptions, arguments, verb="suite", description=HELP)
    from triptych.workflows.official_data import OfficialData
    from triptych.workflows.scoring import Scoring
    from triptych.workflows.suite import RESULTS, find_suite, run_suite

    suite = find_suite(options.suite)
    _check(options)
    out = options.out or Path("runs") / f"suite-{options.suite}"
    scoring = Scoring(
        data=OfficialData(options.data),
        out=out,
        models=options.models,
        train=options.train,
        scale=options.scale,
        limit=options.limit,
        max_steps=options.max_steps,
        num_threads=options.num_threads,
    )
    result = run_suite(
        suite,
        options.folder,
        scoring,
        on_start=lambda text: print(text, file=sys.stderr),
    )
    command = "triptych suite " + shlex.join(arguments)
    _write_report(result, options, out / REPORT, command)
    if options.json:
        print(json_module.dumps({n: asdict(o) for n, o in result.outcomes.items()}))
    else:
        print_suite(result)
        print(f"wrote {out / RESULTS} and {out / REPORT}")
    return 0


def _check(options: SuiteOptions) -> None:
    """Raise where nothing could be scored."""
    for flag, folder in (("--data", options.data), ("--models", options.models)):
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"{flag} {folder}: there is no such folder")
    if options.folder is None and options.models is None:
        raise ConfigError("name a MODEL folder, or a folder of fine-tuned ones with --models")
    if options.folder is None and options.train:
        raise ConfigError("--train fine-tunes a MODEL: name its folder after the suite")
    if options.folder is not None:
        from triptych.serving.loading import load_model

        load_model(options.folder, device="cpu")
    for flag, value in (("--limit", options.limit), ("--max-steps", options.max_steps)):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} {value}: must be at least 1")


def score_rows(result: SuiteResult) -> list[ScoreRow]:
    """Return every number of a suite with its interval."""
    from triptych.papers.benchmarks import find_benchmark
    from triptych.report.data import ScoreRow
    from triptych.workflows.scoring import named_value

    rows = []
    for name, outcome in result.outcomes.items():
        benchmark = find_benchmark(name)
        for part in outcome.values:
            for metric, ours in benchmark.metrics.items():
                value = named_value(benchmark, outcome, part, ours[0])
                if len(ours) > 1 or value is None:
                    continue
                rows.append(
                    ScoreRow(
                        task=benchmark.title,
                        metric=metric,
                        split=part,
                        value=value.value,
                        low=value.low,
                        high=value.high,
                        protocol=value.protocol,
                    )
                )
    return rows


def print_suite(result: SuiteResult) -> None:
    """Print the scores, the averages, and what is missing for the others."""
    from rich.table import Table

    from triptych.core.console import Console
    from triptych.report.data import format_score

    console = Console(highlight=False)
    table = Table("benchmark", "split", "metric", "score", "95 % interval", title_justify="left")
    table.title = result.suite.title
    for row in score_rows(result):
        interval = f"{format_score(row.low)} to {format_score(row.high)}"
        table.add_row(row.task, row.split, row.metric, format_score(row.value), interval)
    if table.row_count:
        console.print(table)
    for line in average_lines(result):
        console.print(line, markup=False, soft_wrap=True)
    for title, reasons in not_scored(result):
        console.print(f"[bold]{title}[/bold]: not scored", soft_wrap=True)
        for reason in reasons:
            console.print(f"  {reason}", markup=False, soft_wrap=True)
    scored = sum(outcome.status == "scored" for outcome in result.outcomes.values())
    console.print(f"{scored} of {len(result.outcomes)} benchmarks scored", soft_wrap=True)


def average_lines(result: SuiteResult) -> list[str]:
    """Return the averages in words; that of a part says of which part."""
    from triptych.report.data import format_score

    lines = []
    for average in result.averages:
        if average.value is None:
            lines.append(f"average, {average.name}: none of its {average.num_items} numbers")
            continue
        part = "" if average.is_whole else ", not the paper's average"
        of = f"mean of {average.num_scored} of {average.num_items}{part}"
        if average.name == "macro":
            of = f"{average.num_scored} of {average.num_items} averages are whole{part}"
        lines.append(f"average, {average.name}: {format_score(average.value)} ({of})")
    return lines + ([result.suite.note] if result.suite.note else [])


def not_scored(result: SuiteResult) -> list[tuple[str, tuple[str, ...]]]:
    """Return the title of each benchmark without a score, and why."""
    from triptych.papers.benchmarks import find_benchmark

    words = {"missing": "missing: ", "impossible": "cannot: ", "failed": "error: "}

    def reasons(outcome: Outcome) -> tuple[str, ...]:
        return tuple(words[outcome.status] + reason for reason in outcome.reasons)

    return [
        (find_benchmark(name).title, reasons(outcome))
        for name, outcome in result.outcomes.items()
        if outcome.status != "scored"
    ]


def _write_report(result: SuiteResult, options: SuiteOptions, path: Path, command: str) -> None:
    from triptych.core.machine import current_commit, describe_machine
    from triptych.report.data import ReportData
    from triptych.report.html import write_report

    what = options.folder or options.models
    write_report(
        ReportData(
            title=f"Triptych suite: {result.suite.title}",
            summary_lines=(f"Model: {what}. Data: {options.data}.", *average_lines(result)),
            scores=tuple(score_rows(result)),
            not_scored=tuple(not_scored(result)),
            times_s={
                outcome.benchmark: outcome.seconds
                for outcome in result.outcomes.values()
                if outcome.seconds
            },
            machine=describe_machine(),
            commit=current_commit(),
            commands=(command,),
        ),
        path,
    )
