"""The tables of docs/scale.md: what the papers' models need on 8 to 512 GPUs, on paper.

Nothing is measured: parameters are counted on the meta device, and the rest is
`triptych/train/estimate.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from benchmarks.pages.markdown import fill_blocks, make_table
from triptych.distributed.engine import Parallel
from triptych.recipes.registry import build_recipe
from triptych.train.estimate import ScaleSetting, contrast_memory, estimate_network, with_parallel
from triptych.train.hardware import HARDWARE
from triptych.workflows.estimate import RECOMPUTES, Estimate, RunCount, count_run, fit, run_setting

ON = HARDWARE["h100"]
UTILISATION = 0.3
GPUS = (8, 16, 32, 64, 128, 256, 512)
SHOWN = (8, 64, 512)
"""Numbers of GPUs in the tables of memory."""
PAIRS = (14e6, 70e6, 1e9)
KINDS: dict[Parallel, str] = {"ddp": "DDP", "zero2": "ZeRO-2", "fsdp": "FSDP", "hsdp": "HSDP"}
GB = 1e9


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the page.

    Attributes:
        title: Its name.
        recipe: What trains it.
        scale: The recipe's scale.
        model: A variant in place of the scale's own.
    """

    title: str
    recipe: str
    scale: str
    model: str | None = None


ENTRIES = (
    Entry("mPLUG-large", "mplug.pretrain", "large"),
    Entry("VLMo-large", "vlmo.pretrain", "large"),
    Entry("FLAVA", "flava.joint", "base"),
    Entry("FLAVA 10B", "flava.joint", "base", "flava_10b"),
)


@cache
def counted(entry: Entry) -> tuple[RunCount, ScaleSetting]:
    """Return what a model has and does, and its setting on one GPU."""
    config = build_recipe(entry.recipe, entry.scale)
    if entry.model is not None:
        config = replace(config, model=replace(config.model, name=entry.model))
    return count_run(config), replace(run_setting(config, 1), micro_batch_size=None)


@cache
def row(entry: Entry, gpus: int, kind: Parallel) -> Estimate:
    """Return the first setting of so many GPUs that fits: bf16, sharded parameters in bf16."""
    count, alone = counted(entry)
    setting = replace(
        alone,
        world_size=gpus,
        parallel="fsdp",
        precision="bf16-params",
        shard_size=8,
    )
    return fit(count, with_parallel(setting, kind), ON, utilisation=UTILISATION)


def scale_page(results: Path, old: str) -> str:
    """Return the page with its tables as the formulas give them now; no result is read."""
    del results
    return fill_blocks(
        old,
        {
            "hardware": hardware_table(),
            "sizes": sizes_table(),
            "tables": "\n\n".join(part for entry in ENTRIES for part in tables(entry)),
            "contrast": contrast_table(),
            "limits": limits_table(),
        },
    )


def hardware_table() -> str:
    """Return the presets and their sources."""
    head = ("preset", "memory GB", "TFLOP/s, 16 bits", "fp32", "GB/s in a machine", "between")
    rows = [
        (
            f"`{name}` ({hardware.name})",
            f"{hardware.memory_bytes / GB:.0f}",
            f"{hardware.peak_flops / 1e12:.0f}",
            f"{hardware.peak_flops_fp32 / 1e12:g}",
            f"{hardware.node_link / GB:.0f}",
            f"{hardware.link / GB:.0f}",
        )
        for name, hardware in HARDWARE.items()
    ]
    sources = "\n".join(f"- {hardware.name}: {hardware.source}." for hardware in HARDWARE.values())
    return f"{make_table(head, rows)}\n\n{sources}"


def sizes_table() -> str:
    """Return parameters, operations and activations of each model."""
    head = ("model", "batch", "trained M", "teacher, frozen M", "outside blocks M", "GFLOP a pair")
    rows = []
    for entry in ENTRIES:
        count, alone = counted(entry)
        parts = count.state.all()
        rows.append(
            (
                entry.title,
                f"{alone.global_batch_size:,}",
                f"{parts.trained / 1e6:,.1f}",
                f"{(parts.teacher + parts.frozen) / 1e6:,.1f}",
                f"{count.state.root.parameters / 1e6:,.1f}",
                f"{count.work.model_flops() / GB:,.0f}",
                *(f"{count.work.kept_bytes(way, 2, 4) / 1e6:,.0f}" for way in RECOMPUTES),
            )
        )
    return make_table((*head, *(f"MB a pair, {way}" for way in RECOMPUTES)), rows)


def tables(entry: Entry) -> Iterator[str]:
    """Yield the heading of a model and its tables of memory, and of hours."""
    yield f"### {entry.title}"
    head = ("GPUs", "", "recompute", "pairs at a time", "state", "rest", "total", "fits")
    rows = []
    for gpus in SHOWN:
        for kind, title in KINDS.items():
            if kind == "hsdp" and gpus == 8:
                continue  # one group: FSDP
            found = row(entry, gpus, kind)
            memory = found.memory
            rows.append(
                (
                    f"{gpus}",
                    title,
                    found.setting.recompute,
                    f"{found.samples}",
                    f"{memory.state / GB:,.1f}",
                    f"{(memory.total - memory.state) / GB:,.1f}",
                    f"{memory.total / GB:,.1f}",
                    "yes" if found.fits else "no",
                    f"{found.network.total / GB:,.1f}",
                    f"{found.time.compute_s:.3f}",
                    f"{found.time.network_s:.3f}",
                )
            )
    yield make_table((*head, "sent GB", "compute s", "network s"), rows)
    yield f"Hours of one pass over {', '.join(_pairs(pairs) for pairs in PAIRS)} pairs:"
    rows = [
        (str(gpus), *(_hours(entry, gpus, kind) for kind in KINDS if (gpus, kind) != (8, "hsdp")))
        for gpus in GPUS
    ]
    rows[0] = (*rows[0], "as FSDP")
    yield make_table(("GPUs", *KINDS.values()), rows)


def _pairs(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}"


def _hours(entry: Entry, gpus: int, kind: Parallel) -> str:
    found = row(entry, gpus, kind)
    if not found.fits:
        return "does not fit"
    return " / ".join(_short(found.time.hours(pairs, found.setting)) for pairs in PAIRS)


def _short(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"


def contrast_table() -> str:
    """Return memory and traffic of FLAVA's contrastive loss as rows and columns grow."""
    count, alone = counted(ENTRIES[2])
    head = ("GPUs", "rows B", "columns G", "embeddings GB", "matrices, whole GB", "in tiles GB")
    rows = []
    for gpus in (8, 64, 512):
        for batch in (128, 1024, 4096):
            tiled = replace(alone, world_size=gpus, global_batch_size=gpus * batch, parallel="ddp")
            columns = gpus * batch
            network = estimate_network(count.state, tiled, count.work, ON)
            loss = count.work.contrast
            assert loss is not None
            embeddings = 4 * columns * loss.embed_dim * 4
            whole = contrast_memory(replace(tiled, tile=None), count.work) - embeddings
            tiles = contrast_memory(tiled, count.work) - embeddings
            rows.append(
                (
                    f"{gpus}",
                    f"{batch:,}",
                    f"{columns:,}",
                    f"{embeddings / GB:.2f}",
                    f"{whole / GB:,.2f}",
                    f"{tiles / GB:.2f}",
                    f"{network.contrast / GB:.2f}",
                    f"{network.gradients / GB:.2f}",
                )
            )
    return make_table((*head, "sent for them GB", "for gradients GB"), rows)


def limits_table() -> str:
    """Return from how many columns on embeddings cost each model more than gradients."""
    rows = []
    for entry in ENTRIES:
        count, _ = counted(entry)
        loss = count.work.contrast
        assert loss is not None
        columns = count.state.all().trained / (loss.embed_dim * loss.gathers)
        flops = count.work.model_flops() / (12 * loss.embed_dim * loss.branches)
        rows.append(
            (
                entry.title,
                f"{loss.embed_dim:,}" + (f" x {loss.branches}" if loss.branches > 1 else ""),
                f"{loss.gathers}",
                _pairs(columns),
                _pairs(flops),
            )
        )
    head = ("model", "E", "gathers", "columns G whose gathers send as much as the gradients")
    return make_table((*head, "columns G whose products cost as much as the model"), rows)
