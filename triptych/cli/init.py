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

HELP = """Look at your data and write a config that trains on it, with every field explained.

Examples:
  triptych init my.jsonl
  triptych init questions.jsonl --recipe mplug.vqa --init-from runs/mine/model --out vqa.yaml
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class InitOptions:
    """What to write.

    Attributes:
        manifest: Your data: .jsonl, .csv, an annotation file of a public dataset, or a folder.
        source: How it is read.
        out: The config file.
        recipe: What to train; if absent, chosen by the fields of the data.
        scale: Size: smoke (seconds), tiny (minutes), small (an hour), base, large (paper).
        init_from: A model folder to start from, for fine-tuning.
    """

    manifest: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MANIFEST")]]
    source: SourceGroup = field(default_factory=SourceOptions)
    out: Path = Path("run.yaml")
    recipe: str | None = None
    scale: Literal["smoke", "tiny", "small", "base", "large"] = "tiny"
    init_from: str | None = None


def run(arguments: Sequence[str]) -> int:
    """Write the config, and print what was found and what comes next."""
    options = parse(InitOptions, arguments, verb="init", description=HELP)
    if options.out.exists():
        raise ConfigError(f"{options.out} exists: choose another file with --out, or remove it")
    from triptych.cli.field_help import documented_yaml
    from triptych.data.manifest import read_records

    found = read_records(options.source.source(options.manifest))
    recipe = choose_recipe(found.records, options.recipe, options.manifest)
    config = _config(options, recipe)
    write_atomic(options.out, documented_yaml(config, _header(options, config)))
    counts = ", ".join(f"{n:,} with {name}" for name, n in count_fields(found.records).items())
    print(f"{options.manifest}: {len(found.records):,} records ({counts})")
    if found.skipped:
        first = found.skipped[0]
        print(f"{len(found.skipped):,} entries cannot be used; the first: {first.where}: ", end="")
        print(first.message)
    print(f"wrote {options.out} ({recipe}, {options.scale})")
    others = [name for name in fitting_recipes(found.records) if name != recipe]
    if options.recipe is None and others:
        print(f"the data is also good for --recipe {', '.join(others)}")
    print(f"next: triptych data check {options.manifest}{options.source.flags()}")
    print(f"      triptych train {options.out} --out runs/{options.out.stem}")
    return 0


def count_fields(records: Sequence[Record]) -> dict[str, int]:
    """Return how many records have each field that a recipe needs."""
    from triptych.data.records import kinds_of
    from triptych.tasks.registry import recipe_needs

    ways = (way for needed in recipe_needs().values() for need in needed for way in need.split("|"))
    names = dict.fromkeys(("image", *ways))
    kinds = kinds_of(records)
    counts = {name: sum(n for kind, n in kinds.items() if name in kind) for name in names}
    return {name: count for name, count in counts.items() if count}


def fitting_recipes(records: Sequence[Record]) -> list[str]:
    """Return the recipes that some record has all fields for, the default first.

    Of images alone it is the image tokenizer, which needs nothing else and which other recipes for
    images start from.
    """
    from triptych.data.records import kinds_of
    from triptych.tasks.registry import recipe_needs

    def fits(kind: tuple[str, ...], needs: Sequence[str]) -> bool:
        return all(any(way in kind for way in need.split("|")) for need in needs)

    kinds = kinds_of(records)
    return [name for name, needs in recipe_needs().items() if any(fits(k, needs) for k in kinds)]


def choose_recipe(records: Sequence[Record], asked: str | None, where: str) -> str:
    """Return the recipe that was asked for, or the first whose fields the records have.

    Raises:
        ConfigError: There is no such recipe.
        DataError: The records do not have what the recipe, or any recipe, needs.
    """
    from triptych.cli.train import STAGEWISE
    from triptych.recipes.registry import RECIPES
    from triptych.tasks.registry import missing_fields, recipe_needs

    if asked is not None:
        if asked in STAGEWISE:
            raise ConfigError(
                f"{asked} trains several stages, and a config file holds one: run `triptych train "
                f"{asked} --data {where}`, or name the recipe of a stage, which `triptych train "
                f"{asked} --help` lists"
            )
        RECIPES.get(asked)
        missing = min(
            (missing_fields(recipe_needs()[asked], record) for record in records), key=len
        )
        if missing:
            raise DataError(
                f"{where}: no record has {_listed(missing, ' and ')}, which {asked} needs "
                f"(found: {', '.join(count_fields(records)) or 'nothing'})"
            )
        return asked
    fitting = fitting_recipes(records)
    if fitting:
        return fitting[0]
    ways = "; ".join(
        f"{recipe}: {_listed(needed, ', ')}" for recipe, needed in recipe_needs().items()
    )
    raise DataError(f"{where}: no recipe fits the fields of the records. Recipes need: {ways}")


def _listed(needs: Sequence[str], between: str) -> str:
    return between.join(need.replace("|", " or ") for need in needs)


def _config(options: InitOptions, recipe: str) -> RunConfig:
    from triptych.recipes.registry import build_recipe

    config = build_recipe(recipe, options.scale)
    source = options.source.source(options.manifest)
    model = replace(config.model, init_from=options.init_from)
    return replace(config, data=replace(config.data, train=(source,)), model=model)


def _header(options: InitOptions, config: RunConfig) -> str:
    lines = [
        f"{config.recipe} at scale {options.scale}, for {options.manifest}.",
        f"Train:  triptych train {options.out} --out runs/{options.out.stem}",
        "Any field can also be set on the command line, such as --train.max-steps 500.",
        "To keep the best model as well as the last: data.val_share 0.05, or held-out data in "
        "data.val.",
    ]
    hint = _start(config)
    return "\n".join([*lines, hint] if hint else lines)


def _start(config: RunConfig) -> str | None:
    """Return what a task needs beside the data, as a sentence, or None."""
    from triptych.tasks.registry import task_spec

    spec = task_spec(config.task)
    if spec.start_hint is not None:
        return spec.start_hint
    if spec.pretrains or config.model.init_from is not None:
        return None
    return "Fine-tuning needs a pre-trained model: set model.init_from to its folder."
