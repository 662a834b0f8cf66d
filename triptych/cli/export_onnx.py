"""`triptych export onnx`: image and text encoder for onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from triptych.cli.parsing import FolderArgument, parse

HELP = """Write the image and the text encoder of a model as ONNX, and compare them in onnxruntime.

OUT is a new folder with both graphs, tokenizer.json, preprocess.json, and a README.md whose code
embeds images and texts without Triptych. The dot product of two embeddings is their similarity.

Examples:
  triptych export onnx runs/mine/model exported
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOnnxOptions:
    """What to export.

    Attributes:
        folder: A model folder whose model embeds images and texts, or a hub id.
        out: The new folder.
        json: Print the differences as JSON.
    """

    folder: FolderArgument
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    json: bool = False


def run(arguments: Sequence[str]) -> int:
    """Export, and print how far onnxruntime's embeddings are from the model's own."""
    options = parse(ExportOnnxOptions, arguments, verb="export onnx", description=HELP)
    from triptych.workflows.onnx_export import MAX_ERROR, export_onnx

    found = export_onnx(options.folder, options.out)
    if options.json:
        whole = {"opset": found.opset, "width": found.width, "errors": found.errors}
        print(json.dumps(whole | {"max_error": found.max_error}))
        return 0
    for encoder, by_size in found.errors.items():
        said = ", ".join(f"{error:.1e} (batch of {size})" for size, error in by_size.items())
        print(f"{encoder} encoder: embeddings differ by {said}; at most {MAX_ERROR:.0e} is allowed")
    print(f"wrote {options.out}: opset {found.opset}, embeddings of {found.width} numbers")
    return 0
