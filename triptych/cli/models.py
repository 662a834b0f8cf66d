"""`triptych models`: the sizes that can be trained."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import dataclass

from triptych.cli.parsing import parse

HELP = """List the registered model sizes that `triptych train` and `triptych.create_model` know.

Examples:
  triptych models
  triptych train mplug.pretrain --model.name NAME --data my.jsonl
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelsOptions:
    """How to list.

    Attributes:
        json: Print JSON, one object a line.
    """

    json: bool = False


def run(arguments: Sequence[str]) -> int:
    """Print a table of variants."""
    options = parse(ModelsOptions, arguments, verb="models", description=HELP)
    from rich.table import Table

    from triptych.core.console import Console

    rows = model_rows()
    if options.json:
        for row in rows:
            print(json_module.dumps(row))
        return 0
    table = Table("name", "parameters", "image", "vocabulary")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        millions = f"{int(row['num_parameters']) / 1e6:,.1f} M"
        table.add_row(
            str(row["name"]), millions, f"{row['image_size']} px", f"{row['vocab_size']:,}"
        )
    Console().print(table)
    return 0


def model_rows() -> list[dict[str, str | int]]:
    """Return name, parameters, image size in pixels and vocabulary of each variant.

    Models are built on the meta device, which takes no memory for weights.
    """
    import torch

    from triptych.models.base import num_parameters
    from triptych.models.families import (
        create_model,
        list_image_tokenizers,
        list_models,
        model_sizes,
    )

    rows: list[dict[str, str | int]] = []
    for name in [*list_models(), *list_image_tokenizers()]:
        with torch.device("meta"):
            model = create_model(name)
        rows.append(
            {
                "name": name,
                "num_parameters": num_parameters(model),
                "image_size": model.image_size,
                "vocab_size": model_sizes(model.config).vocab_size,
            }
        )
    return rows
