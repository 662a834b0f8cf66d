"""`triptych plan`: what a run takes on this machine, and on many GPUs."""

from __future__ import annotations

import dataclasses
import json as json_module
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import tyro

from triptych.cli.parsing import parse
from triptych.core.errors import ConfigError
from triptych.core.terminal import colours

if TYPE_CHECKING:
    from triptych.distributed.engine import Parallel
    from triptych.recipes.config import RunConfig
    from triptych.train.hardware import Hardware
    from triptych.workflows.estimate import Estimate, RunCount
    from triptych.workflows.plan import Plan, Row

HELP = """Say what a run takes before it starts: memory, hours and disk, and which flags fit.

RECIPE and all other flags are those of `triptych train`. A few steps of small batches are done on
this machine, with your data if you name it, and nothing of them is kept. With --gpus a table says
what the run needs on so many GPUs; it comes from formulas (see docs/scale.md) that have not been
checked on GPUs.

Examples:
  triptych plan mplug.pretrain --data my.jsonl
  triptych plan mplug.pretrain --data my.jsonl --train.global-batch-size 256 --limit-gb 16
  triptych plan mplug.pretrain --scale large --on-paper --gpus 8 64 --hardware h100
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanOptions:
    """What to plan.

    Attributes:
        limit_gb: Memory that the run may take on this machine, in GB; if absent, what is free now.
        as_given: Measure the run as it is given alone, not with other precisions, recomputation
            and gradient cache.
        on_paper: Measure nothing on this machine.
        gpus: Numbers of GPUs to estimate the run for, on paper; with --on-paper 8 if absent.
        hardware: a100 (80 GB), h100 (80 GB) or h200 (141 GB), connected as in NVIDIA's DGX.
        memory_gb: Memory of a GPU, replaces the preset's.
        link_gb_per_s: Gigabytes per second that a GPU sends to other machines, replaces the
            preset's.
        utilisation: Assumed share of the GPU's peak that all operations together reach.
        pairs: Give the hours of one pass over this many pairs; if absent, of the recipe's steps.
        untiled: Compute the contrastive loss without tiles.
        json: Print JSON, one object per line: the plan, then each row for GPUs.
    """

    limit_gb: float | None = None
    as_given: bool = False
    on_paper: bool = False
    gpus: tuple[int, ...] = ()
    hardware: str = "h100"
    memory_gb: float | None = None
    link_gb_per_s: float | None = None
    utilisation: float = 0.3
    pairs: float | None = None
    untiled: bool = False
    json: bool = False


def run(arguments: Sequence[str]) -> int:
    """Measure and print the plan, then a row for each number of GPUs and way to share the work."""
    options, rest = _read(arguments)
    from triptych.cli.train import read_config

    config = read_config(rest)
    if options.limit_gb is not None and options.limit_gb <= 0:
        raise ConfigError(f"--limit-gb {options.limit_gb}: must be above 0")
    if options.on_paper and not options.gpus:
        options = dataclasses.replace(options, gpus=(8,))
    paper = _on_paper(config, options) if options.gpus else None  # its errors come first
    if not options.on_paper:
        plan = _measured(config, options)
        command = suggested_command(rest, plan.flags())
        read_config(command[2:])  # what is printed can be given
        if options.json:
            print(json_module.dumps(_plain_plan(plan, command)))
        else:
            _print_plan(plan, command)
    if paper is not None:
        count, hardware, rows = paper
        if options.json:
            for row in rows:
                print(json_module.dumps(_plain(row, config, options)))
        else:
            _print(config, count, rows, hardware, options)
    return 0


def _on_paper(config: RunConfig, options: PlanOptions) -> tuple[RunCount, Hardware, list[Estimate]]:
    from triptych.workflows.estimate import count_run

    hardware, count = _hardware(options), count_run(config)
    return count, hardware, _rows(config, count, hardware, options)


def _measured(config: RunConfig, options: PlanOptions) -> Plan:
    from triptych.workflows.plan import make_plan

    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(text, file=sys.stderr, flush=True)

    limit = None if options.limit_gb is None else options.limit_gb * 1e9
    with _stoppable(), tempfile.TemporaryDirectory(prefix="triptych-plan-") as folder:
        return make_plan(config, Path(folder), limit=limit, as_given=options.as_given, say=say)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that its files are removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def suggested_command(rest: Sequence[str], flags: dict[str, str]) -> list[str]:
    """Return a command line of `triptych train` with flags in place of what it said of them."""
    words, kept = list(rest), []
    while words:
        word = words.pop(0)
        name, equals, _ = word.partition("=")
        if name not in flags:
            kept.append(word)
        elif not equals and words:
            words.pop(0)
    return ["triptych", "train", *kept, *(part for pair in flags.items() for part in pair)]


def _read(arguments: Sequence[str]) -> tuple[PlanOptions, list[str]]:
    """Return the own options, and what `triptych train` reads of the rest."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        parse(PlanOptions, ["--help"], verb="plan RECIPE", description=HELP)
    with colours():
        return tyro.cli(
            PlanOptions,
            args=list(arguments),
            prog="triptych plan",
            return_unknown_args=True,
            add_help=False,
            config=(tyro.conf.FlagCreatePairsOff,),
        )


# --------------------------------------------------------------------------------- on this machine


def _plain_plan(plan: Plan, command: Sequence[str]) -> dict[str, Any]:
    """Return a plan as JSON values; bytes and seconds."""
    measured = plan.rehearsed
    return {
        "recipe": plan.config.recipe,
        "model": plan.config.model.name,
        "device": plan.device,
        "limit": plan.limit,
        "given": _plain_row(plan, plan.given),
        "settings": [_plain_row(plan, row) for row in plan.rows],
        "suggested": _plain_row(plan, plan.best)
        | {"flags": plan.flags(), "command": shlex.join(command)},
        "measured": {
            "samples": list(measured.sizes),
            "seconds": measured.parts,
            "forward": measured.passes,
        },
        "data": dataclasses.asdict(plan.data),
        "disk": dataclasses.asdict(plan.disk) | {"peak": plan.disk.peak},
        "notes": list(plan.notes),
    }


def _plain_row(plan: Plan, row: Row) -> dict[str, Any]:
    return {
        **dataclasses.asdict(row.setting),
        "largest": row.largest,
        "micro_batch_size": row.samples,
        "accumulate": row.accumulate,
        "chunk_size": row.chunk,
        "memory": dataclasses.asdict(row.memory) | {"total": row.memory.total},
        "fits": row.fits,
        "same_batches": row.same_batches,
        "step_s": row.step_s,
        "hours": plan.hours(row),
    }


MEMORY_PARTS = {
    "weights": "weights",
    "gradients": "gradients, copies",
    "optimizer": "optimizer",
    "teacher": "teacher, frozen",
    "queue": "queue",
    "activations": "activations",
    "copy": "copy for a checkpoint",
    "data": "decoded images",
    "process": "Python and libraries",
}


def _print_plan(plan: Plan, command: Sequence[str]) -> None:
    from triptych.core.console import Console

    console = Console()
    given, config = plan.given, plan.config

    def say(text: str = "") -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(
        f"{config.recipe} with {config.model.name} on this machine's {plan.device}: "
        f"{config.train.max_steps:,} steps of {config.train.global_batch_size:,} samples, "
        f"as given {given.samples:,} at a time in {given.setting.precision}"
    )
    say()
    console.print(_memory_table(plan))
    console.print(_time_table(plan))
    console.print(_settings_table(plan))
    say(
        f"most: samples at a time (or of a chunk) that fit into nine tenths of "
        f"{plan.limit / 1e9:,.1f} GB. The other columns are at the run's own batch, or at the "
        "largest that fits: GB at the peak, samples a second, hours of the whole run."
    )
    say()
    disk, data = plan.disk, plan.data
    say(
        f"disk: {_size(disk.peak)} at most: {_size(disk.checkpoint)} a checkpoint, "
        f"{_size(disk.checkpoints)} kept, {_size(disk.models)} of models, "
        f"{_size(disk.logs)} of logs"
    )
    texts = (
        f"; texts of {data.mean_tokens:,.1f} tokens, at most {data.longest_tokens:,}"
        if data.longest_tokens
        else ""
    )
    say(f"data: {data.samples:,} samples, {data.epochs:,.1f} epochs{texts}")
    if data.read_gb:
        say(
            f"images: {data.read_gb:,.2f} GB are read, at {data.read_mb_per_s:,.0f} MB/s; one "
            f"process prepares {data.images_per_s:,.0f} samples a second, and "
            f"{given.samples * given.accumulate / given.step_s:,.0f} are trained on"
        )
    for note in plan.notes:
        say(f"note: {note}")
    say()
    say(_verdict(plan))
    say(f"  {shlex.join(command)}")


def _verdict(plan: Plan) -> str:
    given, best = plan.given, plan.best
    does = "fits" if given.fits else "does not fit"
    said = (
        f"As given, the run {does} ({given.memory.total / 1e9:,.2f} GB) and takes "
        f"{plan.hours(given):,.2f} hours."
    )
    if not plan.flags():
        return f"{said} Train it as it is:"
    said += f" Suggested: {best.memory.total / 1e9:,.2f} GB and {plan.hours(best):,.2f} hours with"
    if not best.same_batches:
        said = said.removesuffix(" with") + (
            ", though its losses compare fewer samples with one another, with"
        )
    return f"{said}:"


def _memory_table(plan: Plan) -> Any:
    from rich.table import Table

    memory = dataclasses.asdict(plan.given.memory)
    table = Table("memory at the peak, as given", "MB", box=None, padding=(0, 1, 0, 0))
    table.columns[1].justify = "right"
    for name, words in MEMORY_PARTS.items():
        if memory[name] or name == "gradients":
            table.add_row(words, f"{memory[name] / 1e6:,.1f}")
    table.add_row("total", f"{plan.given.memory.total / 1e6:,.1f}", end_section=True)
    table.add_row("", "")
    return table


def _time_table(plan: Plan) -> Any:
    from rich.table import Table

    measured = plan.rehearsed
    table = Table(
        f"time of {measured.sizes[-1]:,} samples, measured",
        "ms",
        box=None,
        padding=(0, 1, 0, 0),
    )
    table.columns[1].justify = "right"
    for part, seconds in measured.parts.items():
        table.add_row(part.replace("_", " "), f"{1000 * seconds:,.1f}")
        if part == "forward":
            for name, passed in measured.passes.items():
                table.add_row(f"  {name}", f"{1000 * passed:,.1f}")
    table.add_row("", "")
    return table


def _settings_table(plan: Plan) -> Any:
    from rich.table import Table

    heads = ("precision", "recompute", "cache", "most", "at a time", "GB", "samples/s", "hours")
    table = Table(*heads, "", box=None, padding=(0, 1, 0, 0))
    for column in table.columns[2:8]:
        column.justify = "right"
    for row in plan.rows:
        table.add_row(
            row.setting.precision,
            row.setting.recompute,
            "yes" if row.setting.cached else "no",
            f"{row.largest:,}",
            f"{row.chunk or row.samples:,}",
            f"{row.memory.total / 1e9:,.2f}",
            f"{row.samples * row.accumulate / row.step_s:,.1f}",
            f"{plan.hours(row):,.2f}",
            "" if row.fits and row.same_batches else "fewer compared" if row.fits else "too large",
        )
    return table


def _size(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


# ------------------------------------------------------------------------------------ on many GPUs


def _hardware(options: PlanOptions) -> Hardware:
    from triptych.train.hardware import find_hardware

    found = find_hardware(options.hardware)
    if options.memory_gb is not None:
        found = dataclasses.replace(found, memory_bytes=options.memory_gb * 1e9)
    if options.link_gb_per_s is not None:
        found = dataclasses.replace(found, link=options.link_gb_per_s * 1e9)
    return found


def _rows(
    config: RunConfig, count: RunCount, hardware: Hardware, options: PlanOptions
) -> list[Estimate]:
    from triptych.train.estimate import with_parallel
    from triptych.workflows.estimate import fit, run_setting

    rows = []
    for gpus in options.gpus:
        setting = run_setting(config, gpus)
        if options.untiled:
            setting = dataclasses.replace(setting, tile=None)
        for kind in _kinds(config, gpus, hardware):
            asked = with_parallel(setting, kind)
            rows.append(fit(count, asked, hardware, utilisation=options.utilisation))
    return rows


def _kinds(config: RunConfig, gpus: int, hardware: Hardware) -> tuple[Parallel, ...]:
    """Return the config's own way to share the work, or all that differ on so many GPUs."""
    if gpus == 1:
        return ("none",)
    if config.train.parallel != "auto":
        return (config.train.parallel,)
    group = config.train.shard_size or hardware.gpus_per_node
    is_fsdp = gpus <= group or gpus % group  # a single group, or no whole ones
    return ("ddp", "zero2", "fsdp") if is_fsdp else ("ddp", "zero2", "fsdp", "hsdp")


def _plain(row: Estimate, config: RunConfig, options: PlanOptions) -> dict[str, Any]:
    """Return a row as JSON values; bytes and seconds."""
    return {
        "gpus": row.setting.world_size,
        "parallel": row.setting.parallel,
        "precision": row.setting.precision,
        "recompute": row.setting.recompute,
        "samples_at_a_time": row.samples,
        "memory": dataclasses.asdict(row.memory) | {"total": row.memory.total},
        "fits": row.fits,
        "network": dataclasses.asdict(row.network),
        "compute_s": row.time.compute_s,
        "network_s": row.time.network_s,
        "hours": row.time.hours(_samples(config, row, options), row.setting),
    }


def _samples(config: RunConfig, row: Estimate, options: PlanOptions) -> float:
    if options.pairs is None:
        return config.train.max_steps * row.setting.global_batch_size
    if options.pairs <= 0:
        raise ConfigError(f"--pairs {options.pairs}: must be above 0")
    return options.pairs


def _print(
    config: RunConfig,
    count: RunCount,
    rows: Sequence[Estimate],
    hardware: Hardware,
    options: PlanOptions,
) -> None:
    from rich.table import Table

    from triptych.core.console import Console

    heads = ("GPUs", "parallel", "recompute", "batch", "state", "rest", "total", "fits", "sent")
    table = Table(*heads, "compute", "network", "hours", box=None, padding=(0, 1, 0, 0))
    for column in table.columns:
        column.justify = "right"
    for row in rows:
        memory = row.memory
        table.add_row(
            str(row.setting.world_size),
            row.setting.parallel,
            row.setting.recompute,
            f"{row.samples:,}",
            f"{memory.state / 1e9:,.1f}",
            f"{(memory.activations + memory.workspace + memory.contrast) / 1e9:,.1f}",
            f"{memory.total / 1e9:,.1f}",
            "yes" if row.fits else "no",
            f"{row.network.total / 1e9:,.1f}",
            f"{row.time.compute_s:,.2f}",
            f"{row.time.network_s:,.2f}",
            f"{row.time.hours(_samples(config, row, options), row.setting):,.1f}",
        )
    console = Console()
    console.print(
        f"{config.recipe} with {config.model.name}: {count.state.all().trained / 1e6:,.1f} M "
        f"trained parameters, {count.work.model_flops() / 1e9:,.0f} GFLOP a pair; {hardware.name}, "
        f"{options.utilisation:.0%} of its peak assumed",
        highlight=False,
    )
    console.print(table)
    console.print(
        "Estimates on paper, for one GPU. batch: samples at a time; state, rest (activations, "
        "contrastive loss) and total: GB of memory, of which a tenth stays free; sent: GB a step; "
        "compute, network: seconds a step; hours: traffic is hidden behind computation.",
        highlight=False,
    )
