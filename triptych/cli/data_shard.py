"""`triptych data shard`: any dataset as tar shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from triptych.cli.parsing import SourceGroup, SourceOptions, parse, shows_progress
from triptych.core.machine import num_cores

if TYPE_CHECKING:
    from triptych.data.shards import WrittenShards

HELP = """Write a dataset as tar shards, its images mixed: few large files, for disks and networks.

Beside each shard lies an index with its checksum, which `triptych data check` verifies. The same
command goes on where an earlier one was stopped.

Examples:
  triptych data shard my.jsonl --out shards
  triptych data shard 'tables/*.parquet' --out shards --max-side 512
  triptych data check shards
  triptych train mplug.pretrain --data 'https://host/shards/{000000..000099}.tar' \\
    --data.shuffle-window 8
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardVerbOptions:
    """What to write, and how.

    Attributes:
        manifest: A manifest (.jsonl, .csv), an annotation file of a public dataset, a folder of
            images, parquet tables, or tar shards.
        out: A new or empty folder for the shards, or one that the same command began to fill.
        source: How the manifest is read.
        samples_per_shard: Images in a shard.
        max_side: Longest side of an image in pixels; larger ones are shrunk, with their boxes.
            Absent copies all images as they are.
        seed: Of the order of the images.
        num_workers: Processes that write; one a core if absent.
        max_bad_share: Largest allowed share of images that cannot be read, 0 to 1.
    """

    manifest: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MANIFEST")]]
    out: Path
    source: SourceGroup = field(default_factory=SourceOptions)
    samples_per_shard: int = 5000
    max_side: int | None = None
    seed: int = 0
    num_workers: int | None = None
    max_bad_share: float = 0.01


def run(arguments: Sequence[str]) -> int:
    """Write the shards, and print what they hold."""
    options = parse(ShardVerbOptions, arguments, verb="data shard", description=HELP)
    found = _write(options)
    kept = f", {found.num_kept:,} of them from an earlier call" if found.num_kept else ""
    print(
        f"wrote {found.num_images:,} images of {found.num_records:,} records to "
        f"{found.num_shards:,} shards in {options.out} ({found.num_bytes / 1e9:.2f} GB){kept}; "
        f"{found.num_skipped:,} could not be used"
    )
    return 0


def _write(options: ShardVerbOptions) -> WrittenShards:
    from rich.progress import Progress

    from triptych.core.console import Console
    from triptych.data.shards import ShardOptions, write_shards

    how = ShardOptions(
        samples_per_shard=options.samples_per_shard, max_side=options.max_side, seed=options.seed
    )
    with Progress(
        console=Console(stderr=True), transient=True, disable=not shows_progress()
    ) as progress:
        bar = progress.add_task("writing shards", total=None)
        return write_shards(
            options.source.source(options.manifest),
            options.out,
            how,
            num_workers=options.num_workers or num_cores(),
            max_bad_share=options.max_bad_share,
            on_progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
