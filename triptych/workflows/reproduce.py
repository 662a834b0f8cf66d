"""A table of a paper: its numbers beside ours, and exactly what ours still need."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from triptych.core.config import kind_of, save_yaml, to_dict
from triptych.core.errors import ConfigError, TriptychError
from triptych.core.files import folder_for_one, make_folder
from triptych.core.machine import current_commit, describe_machine
from triptych.core.reading import read_json_object
from triptych.data.manifest import read_records
from triptych.models.families import FAMILIES, model_config
from triptych.papers.benchmarks import SUITES, find_benchmark
from triptych.papers.tables import Number, PaperTable, TableModel
from triptych.recipes.changes import with_architecture, with_changes, without_objectives
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.serving.loading import load_model
from triptych.workflows.importing import ImportSettings, import_checkpoint
from triptych.workflows.official_data import SceneData, locate
from triptych.workflows.run import MODEL_FOLDER, finish_run, is_finished
from triptych.workflows.scene_data import scene_run
from triptych.workflows.scoring import (
    Outcome,
    Scoring,
    Store,
    interval_of,
    number_of,
    protocol_of,
    score_benchmark,
)
from triptych.workflows.stagewise import (
    is_stagewise,
    last_stage,
    resume_stagewise,
    scene_plan,
    train_stagewise,
)
from triptych.workflows.suite import RESULTS, compute_averages

PRETRAINED = "pretrained"
CONFIGS = "configs"
SCENES_FOLDER = "scenes"
PERCENT = 100.0
AVERAGE = "average"
STAGEWISE = {"vlmo": "vlmo.stagewise", "flava": "flava.stagewise"}
PRETRAINING = {"mplug": "mplug.pretrain", "vlmo": "vlmo.pretrain", "flava": "flava.joint"}
"""What a system of a table is pre-trained by on the scenes, where its row names no recipe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reproduced:
    """One number of a table beside ours.

    Attributes:
        model: The paper's name of the system, and what stood in for it.
        what: The benchmark and the metric, or the setting.
        paper: The paper's number, in its units; None where no source that we had gives it.
        source: Where that was read.
        ours: Our number in the same units; None where there is none.
        low: Lower end of its 95 % interval.
        high: Upper end.
        protocol: How ours was measured.
        reasons: What is missing, or why there is none.
    """

    model: str
    what: str
    paper: float | None
    source: str
    ours: float | None = None
    low: float | None = None
    high: float | None = None
    protocol: str = ""
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """How a table is reproduced.

    Attributes:
        scoring: How benchmarks are scored; its `out` receives everything.
        root: Folder of the papers' data sets; None where there are none.
        scenes: Whether the built-in scenes stand in for every data set, at `scoring.scale`.
        weights: A model folder, or a released checkpoint to import; None for none.
        tokenizer: Vocabulary of a released checkpoint.
        only: Take only systems whose name holds this.
        results: Folder with the stored outputs of benchmarks.
        tell: Told before something that may take long.
    """

    scoring: Scoring
    root: Path | None = None
    scenes: bool = False
    weights: Path | None = None
    tokenizer: Path | None = None
    only: str = ""
    results: Path = Path("benchmarks/results")
    tell: Callable[[str], None] = field(default=lambda text: None)


def reproduce(table: PaperTable, request: Request) -> list[Reproduced]:
    """Return every number of a table with ours, or with what ours needs.

    Args:
        table: The table.
        request: What is at hand.

    Raises:
        ConfigError: `only` names no system of the table.
    """
    models = [model for model in table.models if request.only.lower() in model.model.lower()]
    if not models and table.models:
        names = "; ".join(model.model for model in table.models)
        raise ConfigError(f"--only {request.only!r} fits no system of {table.full_name}: {names}")
    if table.kind == "settings":
        return [row for model in models for row in _settings(model)]
    if table.kind == "data":
        return [row for model in models for row in _counts(model, request)]
    if table.kind == "stored":
        return _stored(table, request)
    if table.kind == "words":
        return []
    make_folder(request.scoring.out)
    with folder_for_one(request.scoring.out):
        facts = {
            "table": table.full_name,
            "machine": describe_machine(),
            "commit": current_commit(),
        }
        store = Store(request.scoring.out / RESULTS, facts)
        is_one = len(models) == 1
        found = []
        for model in models:
            found += _scored(table, model, request, store, is_one=is_one)
        return found


def _settings(model: TableModel) -> list[Reproduced]:
    """Return the paper's settings beside those of the recipe."""
    assert model.recipe is not None, "a table of settings names recipes"
    plain = to_dict(build_recipe(model.recipe, model.scale))
    rows = []
    for number in model.numbers:
        value = plain
        for part in number.name.split("."):
            value = value[part]
        rows.append(
            _row(
                model.model,
                number.name,
                number,
                ours=float(value),
                protocol=f"recipe {model.recipe} at scale {model.scale}",
            )
        )
    return rows


def _counts(model: TableModel, request: Request) -> list[Reproduced]:
    """Return how much data there is beside how much the paper had."""
    counts: dict[str, float] = {}
    reasons: tuple[str, ...] = ()
    if model.dataset is None:
        reasons = ("it is the sum of the rows above",)
    elif request.root is None:
        reasons = (f"the folder of the data sets, with {model.dataset}/ in it: --data ROOT",)
    else:
        place = locate(request.root, model.dataset, model.split)
        reasons = place.missing
        if place.source is not None:
            try:
                sources = (place.source, *place.others)
                counts = count_records(r for s in sources for r in read_records(s).records)
            except TriptychError as error:
                reasons = (str(error),)
    return [
        _row(
            model.model,
            number.name,
            number,
            ours=counts.get(number.name),
            reasons=reasons,
            protocol=f"{model.dataset}, {model.split}" if counts else "",
        )
        for number in model.numbers
    ]


def count_records(records: Iterable[Any]) -> dict[str, float]:
    """Return images and texts in thousands, pairs in millions, and the words of a caption."""
    images, texts, words = set(), 0, 0
    for record in records:
        if record.image is not None:
            images.add((record.image.path, getattr(record.image, "offset", None)))
        if record.caption:
            texts += 1
            words += len(record.caption.split())
    return {
        "images": len(images) / 1e3,
        "texts": texts / 1e3,
        "million pairs": texts / 1e6,
        "words": words / texts if texts else 0.0,
    }


def _stored(table: PaperTable, request: Request) -> list[Reproduced]:
    """Return the stored output of a benchmark beside what the paper says."""
    paper = [
        _row(model.model, number.name, number, reasons=("the paper's hardware",))
        for model in table.models
        for number in model.numbers
    ]
    path = request.results / table.result
    if not path.is_file():
        reason = f"{path}: measure it in a checkout of the repository with `{table.command}`"
        return [*paper, _ours("ours", table.title, None, (reason,))]
    stored = read_json_object(path)
    content = stored["output"][table.key] if table.key else stored["output"]
    protocol = f"{stored['command']} on {stored['machine'].get('CPU', 'this machine')}"
    return [*paper, *_stored_rows(content, protocol)]


def _stored_rows(content: Any, protocol: str) -> list[Reproduced]:
    """Return rows of a list of rungs, of figures by name, or of figures alone."""
    if isinstance(content, list):
        named = {str(next(iter(rung.values()))): dict(list(rung.items())[1:]) for rung in content}
        return _stored_rows(named, protocol)
    rows = []
    for name, value in content.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        for what, number in inner:
            low = high = None
            if isinstance(number, list) and len(number) == 3:
                number, low, high = number
            if isinstance(number, int | float) and not isinstance(number, bool):
                row = _ours(name, what or name, float(number), (), protocol)
                rows.append(replace(row, low=low, high=high))
    return rows


def _ours(
    model: str, what: str, value: float | None, reasons: tuple[str, ...], protocol: str = ""
) -> Reproduced:
    return Reproduced(
        model=model,
        what=what,
        paper=None,
        source="not in the paper",
        ours=value,
        reasons=reasons,
        protocol=protocol,
    )


def _row(model: str, what: str, number: Number, **ours: Any) -> Reproduced:
    return Reproduced(model=model, what=what, paper=number.value, source=number.source, **ours)


def _scored(
    table: PaperTable, model: TableModel, request: Request, store: Store, *, is_one: bool
) -> list[Reproduced]:
    """Score one system on its benchmarks."""
    reasons: tuple[str, ...] = (model.impossible,) if model.impossible else ()
    base: Path | None = None
    scoring = replace(request.scoring, out=request.scoring.out / slug(model.model))
    name = model.model
    if request.scenes:
        name = f"{name} [on the built-in scenes, scale {scoring.scale}]"
    if not model.impossible:
        try:
            base, reasons = _base(table, model, request, is_one=is_one)
        except TriptychError as error:
            reasons = (str(error),)
    outcomes: dict[str, Outcome] = {}
    for benchmark_name in dict.fromkeys(n.name.partition(".")[0] for n in model.numbers):
        if benchmark_name == AVERAGE or model.impossible:
            continue
        key = f"{slug(model.model)}/{benchmark_name}"
        outcome = score_benchmark(
            find_benchmark(benchmark_name), base, scoring, store.outcomes.get(key), request.tell
        )
        outcomes[benchmark_name] = outcome
        store.add(key, outcome)
    return [_scored_row(name, number, table, outcomes, reasons) for number in model.numbers]


def _scored_row(
    name: str,
    number: Number,
    table: PaperTable,
    outcomes: Mapping[str, Outcome],
    reasons: tuple[str, ...],
) -> Reproduced:
    """Return one number beside ours."""
    benchmark_name, _, metric = number.name.partition(".")
    if benchmark_name == AVERAGE:
        return _average_row(name, number, table, outcomes, reasons)
    benchmark = find_benchmark(benchmark_name)
    what = f"{benchmark.title}, {metric}"
    outcome = outcomes.get(benchmark_name)
    if outcome is None or outcome.status != "scored":
        own = () if outcome is None else outcome.reasons
        without = tuple(text for text in own if not reasons or text != "a pre-trained model")
        return _row(name, what, number, reasons=(*reasons, *without))
    value = number_of(benchmark, metric, outcome)
    if value is None:
        names = ", ".join(benchmark.metrics[metric])
        why = f"{names}: Java and the package pycocoevalcap, or another protocol, are needed"
        return _row(name, what, number, reasons=(why,))
    interval = interval_of(benchmark, metric, outcome)
    low, high = (None, None) if interval is None else interval[:2]
    return _row(
        name,
        what,
        number,
        ours=PERCENT * value,
        low=None if low is None else PERCENT * low,
        high=None if high is None else PERCENT * high,
        protocol=protocol_of(benchmark, metric, outcome),
    )


def _average_row(
    name: str,
    number: Number,
    table: PaperTable,
    outcomes: Mapping[str, Outcome],
    reasons: tuple[str, ...],
) -> Reproduced:
    averages = {a.name: a for a in compute_averages(SUITES[table.paper], outcomes)}
    average = averages[number.name.partition(".")[2]]
    what = f"average, {average.name}"
    counted = f"{average.num_scored} of its {average.num_items} numbers are there"
    if average.value is None or not average.is_whole:
        return _row(name, what, number, reasons=(*reasons, counted))
    return _row(name, what, number, ours=PERCENT * average.value, protocol=counted)


def _base(
    table: PaperTable, model: TableModel, request: Request, *, is_one: bool
) -> tuple[Path | None, tuple[str, ...]]:
    """Return the pre-trained model that stands for a system, or what is missing of it."""
    if request.scenes:
        return pretrain_on_scenes(table.paper, model, request), ()
    if request.weights is not None and (model.variant is not None or is_one):
        return _given(table.paper, model, request)
    if model.variant is not None:
        title = f"weights of {model.variant}, as a model folder or as released"
        return None, (f"{title}: --weights FILE",)
    return None, (_how_to_pretrain(model, request),)


def _given(paper: str, model: TableModel, request: Request) -> tuple[Path | None, tuple[str, ...]]:
    """Return the weights that were given, imported if need be, if they are of the right size."""
    assert request.weights is not None, "asked before"
    folder = request.weights
    if not (folder / "config.json").is_file() and not folder.exists():
        return None, (f"{folder}: there is no such file",)
    if folder.is_file():
        if model.variant is None:
            return None, (f"{folder}: import it first, with `triptych import`",)
        out = request.scoring.out / "imported" / model.variant
        if not out.exists():
            settings = ImportSettings(variant=model.variant, tokenizer=request.tokenizer)
            import_checkpoint(paper, folder, out, settings)
        folder = out
    config = load_model(folder, device="cpu").model.config
    if kind_of(type(config)) != paper:
        title = FAMILIES.get(paper).title
        return None, (f"weights of {title}: {folder} is of {kind_of(type(config))}",)
    if model.variant is not None and sizes(config) != sizes(model_config(model.variant)):
        return None, (f"weights of {model.variant}: {folder} has other sizes",)
    return folder, ()


SIZES = ("embed_dim", "depth", "text_depth", "fusion_depth", "decoder_depth", "num_heads")


def sizes(config: Any) -> list[tuple[str, object]]:
    """Return widths and depths of a model, which fine-tuning does not change."""

    def walk(plain: Any, path: str) -> Iterable[tuple[str, object]]:
        if isinstance(plain, Mapping):
            for name, value in plain.items():
                yield from walk(value, f"{path}.{name}")
        elif path.rpartition(".")[2] in SIZES:
            yield path, plain

    return sorted(walk(to_dict(config), ""), key=lambda pair: pair[0])


def _how_to_pretrain(model: TableModel, request: Request) -> str:
    """Return the command that pre-trains a system of an ablation; its config is written."""
    assert model.recipe is not None, "a system without a variant names its recipe"
    weights = f"then `--weights MODEL_FOLDER --only {model.model!r}`"
    if model.recipe in STAGEWISE.values():
        return (
            f"a model of `triptych train {model.recipe} --scale base --data PAIRS --texts TEXTS "
            f"--images IMAGES`; {weights}"
        )
    if model.architecture:
        return f"a registered variant with {dict(model.architecture)}; {weights}"
    path = request.scoring.out / CONFIGS / f"{slug(model.model)}.yaml"
    make_folder(path.parent)
    save_yaml(pretraining_run(model, "base"), path)
    start = "" if model.start is None else f" --model.init-from {model.start.upper()}_STAGE"
    return f"a model of `triptych train {path} --data PAIRS{start}`; {weights}"


def pretraining_run(model: TableModel, scale: str, recipe: str | None = None) -> RunConfig:
    """Return the run that pre-trains a system of a table.

    Args:
        model: The system.
        scale: Of its recipe.
        recipe: Where it names none.
    """
    name = model.recipe or recipe
    assert name is not None, "every system has a recipe, or its family has"
    config = build_recipe(name, scale)
    config = without_objectives(config, model.without)
    config = with_architecture(config, model.architecture)
    return with_changes(config, model.changes)


def pretrain_on_scenes(paper: str, model: TableModel, request: Request) -> Path:
    """Pre-train a system of a table on the built-in scenes, unless that is done.

    Systems that are pre-trained in the same way share a model.

    Returns:
        Its model folder.
    """
    scoring = request.scoring
    assert isinstance(scoring.data, SceneData), "the scenes stand in"
    stages = scoring.out / PRETRAINED / f"{paper}_stages"
    if model.recipe in STAGEWISE.values() or model.start is not None:
        request.tell(f"pre-training the stages of {paper} on the built-in scenes")
        _train_stages(paper, stages, scoring)
        if model.recipe in STAGEWISE.values():
            return last_stage(stages) / MODEL_FOLDER
    config = pretraining_run(model, scoring.scale, PRETRAINING[paper])
    names = [config.recipe, *model.without, model.start or "", *map(str, model.changes.values())]
    names += map(str, model.architecture.values())
    folder = scoring.out / PRETRAINED / slug("_".join(name for name in names if name))
    if not is_finished(folder):
        request.tell(f"pre-training {folder.name} on the built-in scenes")
        if model.start is not None:
            start = str(stages / model.start / MODEL_FOLDER)
            config = replace(config, model=replace(config.model, init_from=start))
        config = scene_run(config, scoring.data.files().root, console=scoring.console)
        train = replace(config.train, num_threads=scoring.num_threads)
        finish_run(replace(config, train=train), folder, console=scoring.console)
    return folder / MODEL_FOLDER


def _train_stages(paper: str, folder: Path, scoring: Scoring) -> None:
    """Train a family's stages on scenes of their own, or go on with that."""
    if is_stagewise(folder):
        if not is_finished(last_stage(folder)):
            resume_stagewise(folder, console=scoring.console)
        return
    plan = scene_plan(folder / "data", scoring.scale, family=paper, num_threads=scoring.num_threads)
    train_stagewise(plan, folder, console=scoring.console)


def slug(name: str) -> str:
    """Return a name as a folder's."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def missing_of(rows: Sequence[Reproduced]) -> list[str]:
    """Return each thing that is missing once, in order."""
    return list(dict.fromkeys(reason for row in rows for reason in row.reasons))
