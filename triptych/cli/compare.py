"""`triptych compare`: variants of a run at the same data, budget and seeds."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from triptych.cli.parsing import SourceGroup, SourceOptions, parse, refuse_repeats
from triptych.core.errors import ConfigError

if TYPE_CHECKING:
    from triptych.data.source import DataSourceConfig
    from triptych.lab.definition import Budget

HELP = """Train variants of a run on the same data, at the same budget and seeds, and compare them.

STUDY is a built-in study or a YAML file of your own; without one, the built-in studies are listed.
The same command continues an interrupted study, and more --seeds add to what is there.

Examples:
  triptych compare
  triptych compare mplug.fusion --out runs/fusion
  triptych compare mine.yaml --data pairs.jsonl --data.val held_out.jsonl --out runs/mine
  triptych compare systems --budget minutes=10 --seeds 5 --jobs 2 --out runs/systems
"""

FAILED = 1
"""The exit code where a variant failed and the others went on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareOptions:
    """What to compare.

    Attributes:
        study: A built-in study, or a YAML file.
        out: Folder for data, runs and results: new, empty, or that of an earlier call; if absent,
            runs/compare-STUDY.
        data: Images with captions in place of the built-in scenes.
        source: How they are read.
        val: Such data that no run trains on, for the scores; read as --data, but for
            --data.val-split. If absent, a tenth of the images of --data is held out.
        val_split: The part of --data.val to read if it has several.
        budget: What each variant may spend: samples=N, minutes=N or flops=N; if absent, what the
            study says.
        seeds: How many; 3 or more can tell variants apart.
        jobs: Runs to train at the same time.
        scale: Scale of all recipes, in place of the study's: smoke (seconds, to try a study out),
            tiny, small, base, large.
        num_threads: CPU threads of each run; if absent, the cores are divided among --jobs.
        rerun: Variants or stages to train again.
        json: Print the results as JSON instead of a table.
    """

    study: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="STUDY")]] = None
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH [PATH ...]")] = ()
    source: SourceGroup = field(default_factory=SourceOptions)
    val: Annotated[str | None, tyro.conf.arg(name="data.val", metavar="PATH")] = None
    val_split: Annotated[str | None, tyro.conf.arg(name="data.val-split", metavar="SPLIT")] = None
    budget: Annotated[str | None, tyro.conf.arg(metavar="UNIT=N")] = None
    seeds: int = 3
    jobs: int = 1
    scale: Literal["smoke", "tiny", "small", "base", "large"] | None = None
    num_threads: int | None = None
    rerun: tuple[str, ...] = ()
    json: bool = False


def run(arguments: Sequence[str]) -> int:
    """Run a study, print its table, and write its results."""
    refuse_repeats(arguments, "--data", "--rerun")
    options = parse(CompareOptions, arguments, verb="compare", description=HELP)
    from triptych.lab.definition import load_study

    if options.study is None:
        return _list()
    study = load_study(options.study)
    from dataclasses import replace

    from triptych.core.console import Console
    from triptych.core.machine import num_cores
    from triptych.lab.page import PAGE_FILE, print_results
    from triptych.lab.plan import Settings, at_scale
    from triptych.lab.results import RESULTS_FILE
    from triptych.lab.study import run_study
    from triptych.train.interrupts import TrainingInterrupted

    if options.jobs < 1:
        raise ConfigError(f"jobs = {options.jobs}: must be at least 1")
    budget = None if options.budget is None else read_budget(options.budget)
    study = at_scale(study, options.scale or study.scale, budget)
    threads = options.num_threads
    if threads is None and options.jobs > 1:
        threads = max(1, num_cores() // options.jobs)
    data = tuple(options.source.source(path) for path in options.data)
    held_out: tuple[DataSourceConfig, ...] = ()
    if options.val is not None:
        if not data:
            raise ConfigError("--data.val holds out data of --data: name that too")
        held_out = (replace(options.source.source(options.val), split=options.val_split),)
    settings = Settings(seeds=options.seeds, num_threads=threads, data=data, held_out=held_out)
    out = options.out or Path("runs") / f"compare-{Path(options.study).stem}"
    console = Console(stderr=options.json)
    try:
        results = run_study(
            study, settings, out, at_once=options.jobs, rerun=options.rerun, console=console
        )
    except TrainingInterrupted as stop:
        print(f"triptych: {stop}; the same command continues the study", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("triptych: stopped; the same command continues the study", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(results, ensure_ascii=False))
    else:
        print_results(results, console)
        print(f"results: {out / RESULTS_FILE}, page: {out / PAGE_FILE}")
    return FAILED if results["failed"] else 0


def read_budget(text: str) -> Budget:
    """Return the budget that `UNIT=N` says.

    Raises:
        ConfigError: It is not of that form, or there is no such unit.
    """
    from triptych.lab.definition import Budget

    unit, _, amount = text.partition("=")
    units = Budget.__slots__
    if unit not in units:
        raise ConfigError(f"--budget {text}: name {', '.join(f'{u}=N' for u in units)}")
    try:
        number = float(amount)
    except ValueError as error:
        raise ConfigError(f"--budget {text}: {amount!r} is no number") from error
    return Budget(**{unit: number})


def _list() -> int:
    from triptych.core.config import from_dict
    from triptych.core.reading import parse_yaml
    from triptych.lab.definition import Study, built_in_studies

    for name, text in built_in_studies().items():
        print(f"{name:<20} {from_dict(Study, parse_yaml(text)).title}")
    return 0
