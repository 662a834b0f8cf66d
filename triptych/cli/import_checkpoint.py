"""`triptych import` and `triptych export`: model folders and released checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from triptych.cli.parsing import FolderArgument, json_as_out, parse
from triptych.core.files import write_json

if TYPE_CHECKING:
    from triptych.models.conversion import ImportReport

HELP = """Convert a released checkpoint to a model folder, and report what happened to every tensor.

SOURCE is a .pth, .pt, .bin, .ckpt or .safetensors file, or a folder of transformers. No code in
the file is ever run: a file that needs it is refused.

Examples:
  triptych import mplug mplug_base.pth models/mplug_base \\
    --variant mplug_base_patch16_256 --tokenizer vocab.txt
  triptych import mplug caption.pth models/caption --variant mplug_large_patch14_224 \\
    --tokenizer vocab.txt --image-size 336
"""

SHOWN = 8
"""Names of a group that the table shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportOptions:
    """What to import.

    Attributes:
        family: The family whose released layout the file has: mplug, vlmo or flava.
        source: The checkpoint.
        out: The new model folder.
        variant: The model's sizes: a name that `triptych models` lists, or a .yaml or .json file
            with the fields of a model config.
        tokenizer: Its vocab.txt or tokenizer.json, or a folder with one; if absent, the one in
            SOURCE.
        image_size: Side of the input in pixels, to which position tables are resized; the file's
            own if absent.
        trained_for: What it was trained for, such as captioning or vqa; if absent, inferred from
            its tensor names.
        answers: The answers of a VQA classifier in the order of its scores, which the file does not
            hold: one per line, or a JSON list; without them the classifier is skipped.
        allow: Faults to report instead of refusing: tensors that are missing, reshaped (of another
            shape) or unexpected (unknown).
        json: Print the whole report as JSON instead of a table.
        report: Also write the whole report, as JSON, to this file.
    """

    family: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="FAMILY")]]
    source: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="SOURCE")]]
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    variant: str
    tokenizer: Path | None = None
    image_size: int | None = None
    trained_for: str | None = None
    answers: Path | None = None
    allow: tuple[Literal["missing", "reshaped", "unexpected"], ...] = ()
    json: bool = False
    report: Path | None = None


def run(arguments: Sequence[str]) -> int:
    """Import, print the report and the next step."""
    options = parse(
        ImportOptions, json_as_out(arguments, "--report"), verb="import", description=HELP
    )
    from triptych.workflows.importing import ImportSettings, import_checkpoint

    settings = ImportSettings(
        variant=options.variant,
        tokenizer=options.tokenizer,
        image_size=options.image_size,
        trained_for=options.trained_for,
        allow=options.allow,
        answers=options.answers,
    )
    report = import_checkpoint(options.family, options.source, options.out, settings)
    if options.report is not None:
        write_json(options.report, asdict(report))
    if options.json:
        print(json.dumps(asdict(report), ensure_ascii=False))
        return 0
    print_report(str(options.source), report)
    if report.temperature is not None:
        print(f"the file's temperature is {report.temperature:.4f}: further ITC training starts")
        print(f"from it with --task.temperature {report.temperature:.4f}")
    print(f"model: {options.out}")
    return 0


def print_report(title: str, report: ImportReport) -> None:
    """Print what became of the tensors as a table, a row a group."""
    from rich.table import Table

    from triptych.core.console import Console

    print(f"{title}:")
    table = Table("tensors", "what became of them", "names")
    table.columns[0].justify = "right"
    for number, text, names in report_rows(report):
        table.add_row(f"{number:,}", text, names)
    Console(highlight=False).print(table)


def report_rows(report: ImportReport) -> list[tuple[int, str, str]]:
    """Return count, meaning and some names of each group that is not empty."""
    dropped: dict[str, list[str]] = {}
    for name, reason in report.dropped.items():
        dropped.setdefault(reason, []).append(name)
    reshaped = [f"{name}: {why}" for name, why in report.reinitialised.items()]
    groups = [
        ("loaded", report.loaded, False),
        ("of these, resized", report.resized, True),
        *((f"skipped: {reason}", names, False) for reason, names in dropped.items()),
        ("not in the file, randomly initialised", report.missing, True),
        ("of another shape, randomly initialised", reshaped, True),
        ("not understood", report.unexpected, True),
    ]
    return [
        (len(names), text, _some(names) if show else "") for text, names, show in groups if names
    ]


def _some(names: Sequence[str]) -> str:
    more = f"\nand {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "\n".join(names[:SHOWN]) + more


EXPORT_HELP = """Write a model folder in the layout of its family's released code, bit for bit.

OUT is a .pth, .pt, .bin or .safetensors file; for FLAVA also a folder that transformers loads.
`triptych export onnx` writes encoders for onnxruntime instead.

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


def run_export(arguments: Sequence[str]) -> int:
    """Export, and print how much was written."""
    options = parse(ExportOptions, arguments, verb="export", description=EXPORT_HELP)
    from triptych.workflows.importing import export_checkpoint

    number, note = export_checkpoint(options.family, options.folder, options.out)
    print(f"wrote {number:,} tensors to {options.out}")
    if note:
        print(f"note: {note}")
    return 0
