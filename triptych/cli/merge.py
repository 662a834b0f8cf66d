"""`triptych merge`: a change of low rank, put into the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from triptych.cli.parsing import FolderArgument, parse

HELP = """Write a model folder with a LoRA adapter merged into its weights.

The adapter lies beside the weights of MODEL_FOLDER (--lora.save beside), or in a folder of its own
with adapter_config.json and adapter_model.safetensors, as peft writes them (--adapter).

Examples:
  triptych merge runs/vqa/model --out models/vqa
  triptych merge runs/mine/model --adapter adapters/vqa --out models/vqa
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeOptions:
    """What to merge.

    Attributes:
        folder: A model folder, such as RUN_FOLDER/model.
        out: The new model folder.
        adapter: A folder with peft's two files; if absent, those in MODEL_FOLDER.
    """

    folder: FolderArgument
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    adapter: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None


def run(arguments: Sequence[str]) -> int:
    """Merge, and print what was written."""
    options = parse(MergeOptions, arguments, verb="merge", description=HELP)
    from triptych.workflows.adapting import merge_adapter

    number = merge_adapter(options.folder, options.out, options.adapter)
    print(f"model: {options.out} ({number} tensors changed)")
    return 0
