"""`triptych batch`: ask a model about a dataset of any size, into parquet."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from triptych.cli.parsing import (
    EngineGroup,
    EngineOptions,
    FolderArgument,
    GenerationGroup,
    GenerationOptions,
    SourceGroup,
    SourceOptions,
    continued_when_repeated,
    parse,
    read_names,
    shows_progress,
)
from triptych.core.errors import ConfigError

if TYPE_CHECKING:
    from triptych.jobs.job import BatchJob

HELP = """Ask a model about every input of a dataset; write parquet, one row an input.

VERB is caption, answer, ground, match, classify, segment, judge, entail, label, label_texts,
embed (images), or embed_text. DATA is all that training reads: a folder of images, a manifest, CSV,
tar shards, parquet. What an input is asked stands in its record: a question, a phrase, a text.
The column error says why an input could not be used.

The same command again goes on where it stopped; a job whose model, data or options were changed is
refused. --ray runs the same job in several processes, on this machine or on a cluster.

Examples:
  triptych batch caption runs/mine/model photos/ --out captions
  triptych batch answer runs/vqa/model questions.jsonl --out answers --num-beams 3
  triptych batch embed runs/mine/model "shards/*.tar" --out vectors --ray local
"""

LINE_EVERY_S = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchOptions:
    """What to ask about which data.

    Attributes:
        verb: What to ask.
        folder: A model folder.
        data: The dataset.
        out: Folder of the parts.
        source: How the dataset is read.
        generation: caption, answer: how texts are generated; a prompt is part of a caption.
        choices: answer: answers to choose from; if absent, the model generates freely.
        labels: classify: class names, separated by commas, or a text file with one a line; a model
            that was fine-tuned for classes has its own.
        templates: classify: a text file with one sentence per line; {} stands for the class name.
        top: classify: write only the likeliest classes of each image; 0 writes all.
        mask: segment: write the masks too, as PNG.
        limit: Only this many inputs, from the start.
        part_rows: Inputs per part: what a killed job does again at most, in each process.
        batch_size: Inputs that are asked together.
        num_workers: Threads that read images ahead; 0 reads them in turn.
        ray: `local` starts Ray on this machine; otherwise the address of a Ray cluster, whose
            nodes have Triptych and see the same paths.
        ray_workers: Processes on Ray, with a model each; if absent, one per GPU, or per core.
        engine: How the model computes.
    """

    verb: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="VERB")]]
    folder: FolderArgument
    data: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DATA")]]
    out: Path
    source: SourceGroup = field(default_factory=SourceOptions)
    generation: GenerationGroup = field(default_factory=GenerationOptions)
    choices: tuple[str, ...] = ()
    labels: str | None = None
    templates: Path | None = None
    top: int = 0
    mask: bool = False
    limit: int | None = None
    part_rows: int = 1024
    batch_size: int = 32
    num_workers: int = 2
    ray: str | None = None
    ray_workers: int | None = None
    engine: EngineGroup = field(default_factory=EngineOptions)

    def asked(self) -> dict[str, Any]:
        """Return the options of the verb that differ from their defaults, as JSON values."""
        plain = asdict(GenerationOptions())
        chosen = {k: v for k, v in asdict(self.generation).items() if v != plain[k]}
        if self.choices:
            chosen["choices"] = list(self.choices)
        if self.labels is not None:
            chosen["labels"] = list(read_names("labels", self.labels))
        if self.templates is not None:
            from triptych.evaluation.zero_shot import load_templates

            chosen["templates"] = list(load_templates(self.templates))
        if self.top:
            chosen["top"] = self.top
        return chosen | ({"mask": True} if self.mask else {})


def run(arguments: Sequence[str]) -> int:
    """Run the job, and say what it did."""
    options = parse(BatchOptions, arguments, verb="batch", description=HELP)
    if options.ray_workers is not None and options.ray is None:
        raise ConfigError("--ray-workers: there is no --ray to run them on: add --ray local")
    from triptych.jobs.run import run_job

    job = _job(options)
    with continued_when_repeated(), _progress() as show:
        report = run_job(
            job, ray=options.ray, ray_workers=options.ray_workers, progress=show, tell=_tell
        )
    if options.engine.json:
        print(json.dumps({"out": str(options.out), **asdict(report)}))
        return 0
    new = report.num_rows - report.num_before
    print(f"{options.out}: {report.num_rows:,} rows ({new:,} new)")
    if report.num_errors:
        print(f"{report.num_errors:,} inputs could not be used: the column error says why")
    return 0


def _job(options: BatchOptions) -> BatchJob:
    from triptych.jobs.job import SHORT_NAMES, BatchJob
    from triptych.serving.verbs import VERBS

    asked, here = options.asked(), str(Path.cwd())
    verb = VERBS.get(SHORT_NAMES.get(options.verb, options.verb))
    unknown = [] if verb is None else sorted(set(asked) - {f.name for f in fields(verb.options)})
    if unknown:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in unknown)
        raise ConfigError(f"{flags}: `triptych batch {options.verb}` has no such option: omit it")
    return BatchJob(
        verb=options.verb,
        model=options.folder.absolute() if options.folder.exists() else options.folder,
        source=options.source.source(options.data).under(here),
        out=options.out.absolute(),
        options=asked,
        limit=options.limit,
        part_rows=options.part_rows,
        batch_size=options.batch_size,
        num_threads=options.num_workers,
        device=options.engine.device,
        precision=options.engine.precision,
    )


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Yield what shows the rows done, their rate and the time left: a bar, or now and then a line.

    The rate is of this run alone: rows of an earlier one are done when it is called first.
    """
    from rich.progress import BarColumn, Progress, TextColumn

    from triptych.core.console import Console

    columns = (BarColumn(), TextColumn("{task.description}"))
    console, is_watched = Console(stderr=True), shows_progress()
    with Progress(*columns, console=console, transient=True, disable=not is_watched) as progress:
        bar = progress.add_task("", total=None)
        first: list[tuple[float, int]] = []
        told_at = time.monotonic()

        def show(done: int, total: int) -> None:
            nonlocal told_at
            now = time.monotonic()
            first.append((now, done))
            start, before = first[0]
            del first[1:]
            text = f"{done:,} of {total:,} rows"
            if done > before:
                rate = (done - before) / max(now - start, 1e-9)
                text += f", {rate:,.1f} rows/s, {_clock((total - done) / rate)} left"
            progress.update(bar, completed=done, total=total, description=text)
            if not is_watched and (now - told_at >= LINE_EVERY_S or done == total):
                told_at = now
                _tell(text)

        yield show


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
