"""`triptych export`: a model folder in the layout of the released code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from triptych.cli.parsing import FolderArgument, parse

HELP = """Write a model folder in the layout of its family's released code, bit by bit.

OUT is a .pth, .pt, .bin or .safetensors file; for FLAVA also a folder that transformers loads.

Examples:
  triptych export mplug runs/mine/model mine.pth
  triptych export flava runs/flava/model exported/flava
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """What to export.

    Attributes:
        family: Whose released layout: mplug, vlmo or flava.
        folder: A model folder, such as RUN_FOLDER/model.
        out: The new file or folder.
    """

    family: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="FAMILY")]]
    folder: FolderArgument
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]


def run(arguments: Sequence[str]) -> int:
    """Export, and print how much was written."""
    options = parse(ExportOptions, arguments, verb="export", description=HELP)
    from triptych.workflows.importing import export_checkpoint

    number, note = export_checkpoint(options.family, options.folder, options.out)
    print(f"wrote {number:,} tensors to {options.out}")
    if note:
        print(f"note: {note}")
    return 0
