"""`triptych init`: a documented config for the user's own data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from triptych.cli.parsing import SourceGroup, SourceOptions, parse
from triptych.core.errors import ConfigError, DataError
from triptych.core.files import write_atomic

if TYPE_CHECKING:
    from triptych.data.records import Record
    from triptych.recipes.config import RunConfig

HELP = """Look at your data and write a config that trains on it, every field explained.

Examples:
  triptych init my.jsonl
  triptych init questions.jsonl --recipe mplug.vqa --init-from runs/mine/model --out vqa.yaml
"""

NEEDS = {
    "mplug.pretrain": ("caption",),
    "mplug.vqa": ("question", "answers"),
    "mplug.grounding": ("phrase", "box"),
    "mplug.caption": ("caption",),
    "mplug.retrieval": ("caption",),
    "mplug.nlvr2": ("statement", "label"),
    "mplug.snli_ve": ("hypothesis", "label"),
}
"""What the records must have for each recipe; the first that fits is the default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InitOptions:
    """What to write.

    Attributes:
        manifest: Your data: .jsonl, .csv, an annotation file of a public dataset, or a folder.
        source: How it is read.
        out: The config file.
        recipe: What to train; chosen by the fields of the data if absent.
        scale: How large: smoke (seconds), tiny (minutes), small (an hour), base, large (paper).
        init_from: A model folder to start from, for fine-tuning.
    """

    manifest: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MANIFEST")]]
    source: SourceGroup = field(default_factory=SourceOptions)
    out: Path = Path("run.yaml")
    recipe: str | None = None
    scale: Literal["smoke", "tiny", "small", "base", "large"] = "tiny"
    init_from: str | None = None


def run(arguments: Sequence[str]) -> int:
    """Write the config, and say what was found and what comes next."""
    options = parse(InitOptions, arguments, verb="init", description=HELP)
    if options.out.exists():
        raise ConfigError(f"{options.out} exists: choose another file with --out, or remove it")
    from triptych.cli.documented_yaml import documented_yaml
    from triptych.data.manifest import read_records

    found = read_records(options.source.source(options.manifest))
    recipe = choose_recipe(found.records, options.recipe, options.manifest)
    config = _config(options, recipe)
    write_atomic(options.out, documented_yaml(config, _header(options, recipe)))
    counts = ", ".join(f"{n:,} with {name}" for name, n in count_fields(found.records).items())
    print(f"{options.manifest}: {len(found.records):,} records ({counts})")
    if found.skipped:
        first = found.skipped[0]
        print(f"{len(found.skipped):,} entries cannot be used; the first: {first.where}: ", end="")
        print(first.message)
    print(f"wrote {options.out} ({recipe}, {options.scale})")
    print(f"next: triptych data check {options.manifest}{options.source.flags()}")
    print(f"      triptych train {options.out} --out runs/{options.out.stem}")
    return 0


def count_fields(records: Sequence[Record]) -> dict[str, int]:
    """Return how many records have each field that a recipe needs."""
    names = dict.fromkeys(name for needed in NEEDS.values() for name in needed)
    counts = {name: sum(bool(getattr(r, name)) for r in records) for name in ("image", *names)}
    return {name: count for name, count in counts.items() if count}


def choose_recipe(records: Sequence[Record], asked: str | None, where: str) -> str:
    """Return the recipe that was asked for, or the first whose fields the records have.

    Raises:
        ConfigError: There is no such recipe.
        DataError: The records do not have what the recipe, or any recipe, needs.
    """
    from triptych.recipes.registry import RECIPES

    counts = count_fields(records)
    if asked is not None:
        RECIPES.get(asked)
        missing = [name for name in NEEDS.get(asked, ()) if name not in counts]
        if missing:
            raise DataError(
                f"{where}: no record has {' or '.join(missing)}, which {asked} needs "
                f"(found: {', '.join(counts) or 'nothing'})"
            )
        return asked
    for recipe, needed in NEEDS.items():
        if all(name in counts for name in needed):
            return recipe
    ways = "; ".join(f"{recipe}: {', '.join(names)}" for recipe, names in NEEDS.items())
    raise DataError(f"{where}: no recipe fits the fields of the records. Recipes need: {ways}")


def _config(options: InitOptions, recipe: str) -> RunConfig:
    from triptych.recipes.registry import build_recipe

    config = build_recipe(recipe, options.scale)
    source = options.source.source(options.manifest)
    model = replace(config.model, init_from=options.init_from)
    return replace(config, data=replace(config.data, train=(source,)), model=model)


def _header(options: InitOptions, recipe: str) -> str:
    lines = [
        f"{recipe} at scale {options.scale}, for {options.manifest}.",
        f"Train:  triptych train {options.out} --out runs/{options.out.stem}",
        "Any field can also be set on the command line, such as --train.max-steps 500.",
    ]
    if recipe != "mplug.pretrain" and options.init_from is None:
        lines.append("Fine-tuning wants a pre-trained model: set model.init_from to its folder.")
    return "\n".join(lines)
