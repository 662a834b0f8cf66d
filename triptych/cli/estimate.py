"""`triptych estimate`: what a run needs on many GPUs, on paper."""

from __future__ import annotations

import dataclasses
import json as json_module
from collections.abc import Sequence
from dataclasses import dataclass
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

HELP = """Estimate memory, network traffic and hours of a run on many GPUs, before it starts.

RECIPE and all other flags are those of `triptych train`. Nothing is trained and no data is read:
the numbers come from formulas (see docs/scale.md) and have not been checked on GPUs.

Examples:
  triptych estimate mplug.pretrain --scale large --gpus 8 64 --hardware h100
  triptych estimate flava.joint --scale base --model.name flava_10b --gpus 64 --pairs 70e6
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EstimateOptions:
    """What to estimate.

    Attributes:
        gpus: Numbers of GPUs.
        hardware: a100 (80 GB), h100 (80 GB) or h200 (141 GB), connected as in NVIDIA's DGX.
        memory_gb: Memory of a GPU, replaces the preset's.
        link_gb_per_s: Gigabytes per second that a GPU sends to other machines, replaces the
            preset's.
        utilisation: Assumed share of the GPU's peak that all operations together reach.
        pairs: Give the hours of one pass over this many pairs; if absent, of the recipe's steps.
        untiled: Compute the contrastive loss without tiles.
        json: Print JSON, one object per line.
    """

    gpus: tuple[int, ...] = (8,)
    hardware: str = "h100"
    memory_gb: float | None = None
    link_gb_per_s: float | None = None
    utilisation: float = 0.3
    pairs: float | None = None
    untiled: bool = False
    json: bool = False


def run(arguments: Sequence[str]) -> int:
    """Print a row for each number of GPUs and each way to share the work."""
    options, rest = _read(arguments)
    from triptych.cli.train import read_config
    from triptych.workflows.estimate import count_run

    config, hardware = read_config(rest), _hardware(options)
    count = count_run(config)
    rows = _rows(config, count, hardware, options)
    if options.json:
        for row in rows:
            print(json_module.dumps(_plain(row, config, options)))
        return 0
    _print(config, count, rows, hardware, options)
    return 0


def _read(arguments: Sequence[str]) -> tuple[EstimateOptions, list[str]]:
    """Return the own options, and what `triptych train` reads of the rest."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        parse(EstimateOptions, ["--help"], verb="estimate RECIPE", description=HELP)
    with colours():
        return tyro.cli(
            EstimateOptions,
            args=list(arguments),
            prog="triptych estimate",
            return_unknown_args=True,
            add_help=False,
            config=(tyro.conf.FlagCreatePairsOff,),
        )


def _hardware(options: EstimateOptions) -> Hardware:
    from triptych.train.hardware import find_hardware

    found = find_hardware(options.hardware)
    if options.memory_gb is not None:
        found = dataclasses.replace(found, memory_bytes=options.memory_gb * 1e9)
    if options.link_gb_per_s is not None:
        found = dataclasses.replace(found, link=options.link_gb_per_s * 1e9)
    return found


def _rows(
    config: RunConfig, count: RunCount, hardware: Hardware, options: EstimateOptions
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


def _plain(row: Estimate, config: RunConfig, options: EstimateOptions) -> dict[str, Any]:
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


def _samples(config: RunConfig, row: Estimate, options: EstimateOptions) -> float:
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
    options: EstimateOptions,
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
