"""The tables of the papers: every number of the papers' own systems, and what gives ours.

The files `mplug.yaml`, `vlmo.yaml` and `flava.yaml` hold them. Each number names where it was read,
since the papers' tables themselves were not at hand; an empty one stands in the paper, but in no
source that we had. Rows of other systems, such as CLIP's, are excluded: nothing here can score
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

import yaml

from triptych.core.config import check
from triptych.core.errors import ConfigError, nearest

PAPERS = ("mplug", "vlmo", "flava")

Kind = Literal["evaluation", "ablation", "settings", "data", "stored", "words"]
"""evaluation: benchmarks of released or own models. ablation: benchmarks after one's own
pre-training. settings: fields of a recipe. data: counts. stored: a benchmark's output that is kept
in the repository. words: a table without numbers."""


@dataclass(frozen=True, slots=True)
class Number:
    """One number of a table.

    Attributes:
        name: "BENCHMARK.METRIC"; in tables of settings a field of the recipe, of data a count.
        value: The paper's, in its units; None where no source that we had gives it.
        source: Where it was read, in words.
    """

    name: str
    value: float | None
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TableModel:
    """One system of a table, with its numbers.

    Attributes:
        model: The paper's name for it.
        numbers: In the paper's order.
        variant: The registered size that it has; None where the table does not depend on it.
        recipe: What pre-trains it, or holds its settings.
        scale: Of that recipe, in tables of settings.
        start: The stage that its pre-training starts from, of a recipe with stages.
        changes: Fields of the recipe that differ, by their dotted name.
        architecture: Fields of the model's config that differ.
        without: Objectives that are switched off.
        dataset: In tables of data, what is counted.
        split: And which part of it.
        impossible: Why nobody can reproduce it; empty where that can be done.
    """

    model: str
    numbers: tuple[Number, ...]
    variant: str | None = None
    recipe: str | None = None
    scale: str = "base"
    start: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    architecture: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    dataset: str | None = None
    split: str = "train"
    impossible: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperTable:
    """One table or figure of a paper.

    Attributes:
        paper: mplug, vlmo or flava.
        name: Such as "table2".
        title: What it shows.
        kind: What its numbers are.
        models: Its systems, or its rows.
        note: What a reader must know.
        result: Of a stored table, the file in `benchmarks/results`.
        key: The key in that file; empty takes all of its output.
        command: What measures it again.
    """

    paper: str
    name: str
    title: str
    kind: Kind
    models: tuple[TableModel, ...]
    note: str = ""
    result: str = ""
    key: str = ""
    command: str = ""

    @property
    def full_name(self) -> str:
        """Return what `triptych reproduce` calls it, such as "mplug.table2"."""
        return f"{self.paper}.{self.name}"

    @property
    def num_numbers(self) -> int:
        """Return how many numbers it has, those included that no source gave us."""
        return sum(len(model.numbers) for model in self.models)


def paper_tables(paper: str) -> tuple[PaperTable, ...]:
    """Return the tables of a paper, in its order."""
    return _load(paper)


def all_tables() -> dict[str, PaperTable]:
    """Return every table by its full name."""
    return {table.full_name: table for paper in PAPERS for table in _load(paper)}


def find_table(name: str) -> PaperTable:
    """Return a table by its full name.

    Raises:
        ConfigError: There is none; the message names the nearest.
    """
    known = all_tables()
    if name not in known:
        raise ConfigError(
            f"there is no table {name!r}{nearest(name, known)}: `triptych reproduce` lists all"
        )
    return known[name]


@cache
def _load(paper: str) -> tuple[PaperTable, ...]:
    text = (files("triptych.papers") / f"{paper}.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    sources: dict[str, str] = content["sources"]
    return tuple(_table(paper, plain, sources) for plain in content["tables"])


def _table(paper: str, plain: Mapping[str, Any], sources: Mapping[str, str]) -> PaperTable:
    fields = {k: v for k, v in plain.items() if k not in ("models", "source")}
    kind = fields.setdefault("kind", "evaluation")
    check(kind in get_args(Kind), f"{paper}.{plain['name']}.kind", kind, f"be of {get_args(Kind)}")
    models = tuple(_model(model, plain["source"], sources) for model in plain["models"])
    return PaperTable(**fields | {"paper": paper, "models": models})


def _model(plain: Mapping[str, Any], source: str, sources: Mapping[str, str]) -> TableModel:
    fields = {k: v for k, v in plain.items() if k not in ("numbers", "source")}
    source = plain.get("source", source)
    numbers = tuple(
        _number(name, value, source, sources) for name, value in plain["numbers"].items()
    )
    return TableModel(**fields | {"numbers": numbers, "without": tuple(plain.get("without", ()))})


def _number(name: str, value: Any, source: str, sources: Mapping[str, str]) -> Number:
    """Return a number that is written alone, or as [number, source]."""
    if isinstance(value, Sequence):
        value, source = value
    known = sources[source] if value is not None else "in no source that we had"
    return Number(name, None if value is None else float(value), known)
