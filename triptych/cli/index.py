"""`triptych index`: build an index of images, or bring one up to date."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from triptych.cli.parsing import (
    EngineGroup,
    EngineOptions,
    FolderArgument,
    SourceGroup,
    SourceOptions,
    continued_when_repeated,
    parse,
    shows_progress,
)

HELP = """Index images, so that `triptych search` finds them by words or by another image.

DATA is all that training reads: a folder of images, a manifest, CSV, COCO's captions, tar shards or
parquet. The same command again adds what is new or was changed and drops what is gone; after a
kill it continues, and until it has ended the old index can be searched.

Examples:
  triptych index runs/mine/model photos/ --out photos.index
  triptych index runs/mine/model my.jsonl --out my.index --num-workers 2
"""

METHODS: dict[str, bool | None] = {"auto": None, "exact": False, "approximate": True}


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexOptions:
    """What to index, with what.

    Attributes:
        folder: A model folder whose model embeds images.
        data: The dataset.
        out: Folder of the index.
        source: How the dataset is read.
        method: exact compares a query with every vector; approximate adds a faiss index, whose
            recall against exact search is measured; auto does so from a million images on.
        local_batch_size: Images per batch.
        num_workers: Processes that decode images; 0 decodes in this one.
        max_bad_share: Largest allowed share of images that cannot be used.
        engine: How the model computes.
    """

    folder: FolderArgument
    data: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DATA")]]
    out: Path
    source: SourceGroup = field(default_factory=SourceOptions)
    method: Literal["auto", "exact", "approximate"] = "auto"
    local_batch_size: int = 64
    num_workers: int = 0
    max_bad_share: float = 0.01
    engine: EngineGroup = field(default_factory=EngineOptions)


def run(arguments: Sequence[str]) -> int:
    """Build, and print what was done."""
    options = parse(IndexOptions, arguments, verb="index", description=HELP)
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from triptych.core.console import Console
    from triptych.index.build import build_index
    from triptych.serving.loading import load_model

    loaded = load_model(
        options.folder,
        device=options.engine.device,
        precision=options.engine.precision,
        rounded=True,
    )
    print(f"indexing on {loaded.described()}", file=sys.stderr)
    columns = (BarColumn(), TextColumn("{task.completed:,.0f} images"), TimeRemainingColumn())
    console = Console(stderr=True)
    shown = Progress(*columns, console=console, transient=True, disable=not shows_progress())
    with continued_when_repeated(), shown as progress:
        bar = progress.add_task("", total=None)
        report = build_index(
            loaded,
            options.source.source(options.data),
            options.out,
            approximate=METHODS[options.method],
            local_batch_size=options.local_batch_size,
            num_workers=options.num_workers,
            max_bad_share=options.max_bad_share,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    state = report.state
    said: dict[str, Any] = {
        "index": str(options.out),
        "images": state.num_images,
        "new": report.num_new,
        "kept": report.num_kept,
        "dropped": report.num_dropped,
        "bad": report.num_bad,
        "method": state.method,
        "recall_at_10": state.recall_at_10,
    }
    if options.engine.json:
        print(json.dumps(said))
        return 0
    print(
        f"{options.out}: {state.num_images:,} images ({report.num_new:,} new, "
        f"{report.num_kept:,} kept, {report.num_dropped:,} dropped)"
    )
    if report.num_bad:
        print(f"{report.num_bad:,} cannot be used: listed in {options.out / 'skipped.jsonl'}")
    if state.recall_at_10 is not None:
        print(f"{state.method} finds {state.recall_at_10:.1%} of the exact first 10")
    print(f'next: triptych search {options.out} "a few words"')
    return 0
