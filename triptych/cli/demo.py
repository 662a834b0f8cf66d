"""`triptych demo`: data, training, evaluation, an index and a report, in minutes."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from triptych.cli.parsing import SourceGroup, SourceOptions, parse
from triptych.core.console import Console
from triptych.core.errors import ConfigError
from triptych.core.files import write_json
from triptych.demo.page import report_data, results, score_rows
from triptych.demo.run import run_demo
from triptych.demo.state import Demo, DemoSettings, default_minutes, resume_command
from triptych.report.html import write_report
from triptych.report.terminal import print_scores

HELP = """Train a model on generated scenes or on your own images, score it, and write a report.

The machine is measured first, and as much is trained as fits into the minutes. With neither
--minutes nor --scale that is 8 minutes where the processor computes bf16 itself, 10 where it does
not, and everything on a GPU. --scale tiny alone trains all of the scale, however long that takes.

Examples:
  triptych demo                                   8 or 10 minutes on two cores
  triptych demo --data my.jsonl                   the same with your own images
  triptych demo --scale tiny                      the whole demo, twice as long or longer
  triptych demo --scale smoke --out runs/smoke    seconds; checks the installation

The same command continues an interrupted demo.
"""

REPORT = "report.html"
RESULTS = "results.json"
"""Written last: its presence means that the demo is finished."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoOptions:
    """What to run.

    Attributes:
        out: Folder for data, runs and the report: new, empty, or of an interrupted demo; if absent,
            runs/demo, and with --data runs/demo-NAME.
        data: Your own images with captions, in any format that training reads; if absent, scenes
            are generated. Some images are held out, and the model is scored on them.
        source: How --data is read.
        max_bad_share: Largest allowed share of --data that cannot be used; what it is, is listed.
        minutes: About how long everything may take. Steps are chosen by the speed of the machine.
        scale: smoke (seconds, trains a few steps only), tiny, or small (twice the images, steps and
            time); if absent, tiny.
        seed: Seed of scenes and training.
        num_threads: CPU threads; if absent, torch chooses.
    """

    out: Path | None = None
    data: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    source: SourceGroup = field(default_factory=SourceOptions)
    max_bad_share: float = 0.1
    minutes: float | None = None
    scale: Literal["smoke", "tiny", "small"] | None = None
    seed: int = 0
    num_threads: int | None = None


def run(arguments: Sequence[str]) -> int:
    """Run the demo from the command line."""
    options = parse(DemoOptions, arguments, verb="demo", description=HELP)
    given = options.source.flags()
    if options.data is None and given:
        raise ConfigError(f"{given.split()[0]} says how --data is read: give --data as well")
    is_free = options.minutes is None and options.scale is None
    settings = DemoSettings(
        scale=options.scale or "tiny",
        minutes=default_minutes() if is_free else options.minutes,
        seed=options.seed,
        num_threads=options.num_threads,
        data=None if options.data is None else options.source.source(options.data),
        max_bad_share=options.max_bad_share,
    )
    out = options.out or _default_folder(options.data)
    try:
        demo(out, settings)
    except KeyboardInterrupt:  # between two runs; within one, the trainer says how to go on
        command = resume_command(out)
        if command is not None:
            print(f"triptych: continue with `{command}`", file=sys.stderr)
        raise
    return 0


def _default_folder(data: str | None) -> Path:
    name = "" if data is None else Path(data).stem or "data"
    return Path("runs") / (f"demo-{name}" if name else "demo")


def demo(out: Path, settings: DemoSettings) -> Demo:
    """Train mPLUG, score it on what it never saw, index that, and write a report.

    Args:
        out: Folder for data, runs, `index/`, `results.json` and `report.html`; new, empty, or of
            an interrupted demo with the same settings, which continues.
        settings: What to do.

    Raises:
        ConfigError: The folder holds a finished demo, or something else.
        DataError: Own data cannot be used.
    """
    if (out / RESULTS).is_file():
        raise ConfigError(
            f"{out} holds a finished demo, with its report in {out / REPORT}: choose another "
            f"folder with --out, or delete {out}"
        )
    console = Console()
    start = time.perf_counter()
    result = run_demo(out, settings, console=console)
    data = report_data(result, lambda: result.earlier_s + time.perf_counter() - start)
    report = out / REPORT
    write_report(data, report)
    minutes = (result.earlier_s + time.perf_counter() - start) / 60
    write_json(out / RESULTS, results(result, minutes))
    print_scores(score_rows(result), console)
    for note in result.notes:
        result.say(note)
    example = shlex.quote(str(result.example_image()))
    result.say(f"{minutes:.1f} minutes in all. Report: {report.resolve()}")
    result.say(f"Try it: {program()} caption {_quoted(result.model('pretrain'))} {example}")
    result.say("Search, ask and see it in a browser:")
    result.say(serve_command(result))
    return result


def serve_command(result: Demo) -> str:
    """Return the command that serves the models and the index of a demo."""
    models = [result.model(stage) for stage in result.configs]
    words = [*map(_quoted, models), "--index", _quoted(result.index)]
    return f"{program()} serve {' '.join(words)}"


def program() -> str:
    """Return how this program was called, where the shell does not find it by its name."""
    called = Path(sys.argv[0])
    if called.name != "triptych":
        return "triptych"
    found = shutil.which("triptych")
    if found is not None and Path(found).resolve() == called.resolve():
        return "triptych"
    return _quoted(called)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
