"""Score a model on one benchmark of a paper, or say exactly what that needs."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from triptych.checkpoint.model_folder import hash_model_folder
from triptych.core.config import kind_of, load_yaml
from triptych.core.console import Console
from triptych.core.errors import ConfigError, TriptychError
from triptych.core.files import write_json
from triptych.core.machine import current_commit
from triptych.core.outputs import MetricValue
from triptych.core.reading import BAD_CONTENT, read_json_object
from triptych.data.manifest import read_records
from triptych.data.source import DataSourceConfig
from triptych.evaluation.metrics import usable_java_metrics
from triptych.papers.benchmarks import BENCHMARKS, Benchmark
from triptych.recipes.changes import with_changes
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import RECIPES, build_recipe
from triptych.recipes.scales import PAPER_SCALES
from triptych.serving.loading import load_model
from triptych.tasks.finetuning.text_generator import GenerationSettings
from triptych.tasks.registry import TASKS, evaluations, task_spec
from triptych.workflows.evaluate import EvalSettings, evaluate_model
from triptych.workflows.frozen import probe_folder
from triptych.workflows.official_data import BenchmarkData, OfficialData
from triptych.workflows.run import CONFIG_FILE, MODEL_FOLDER, finish_run, is_finished

Status = Literal["scored", "missing", "impossible", "failed"]
"""missing: data or weights are not there. impossible: this model, or anybody, cannot. failed: an
error, which the reason tells."""

MODELS = "models"
"""Below the folder of results: one run for each fine-tuned model."""

CAPTIONS_PER_IMAGE = 5
"""Each so many-th training image chooses a probe's penalty, where a data set has no such part."""

WARMUP_SHARE = 0.06
"""Of the steps, where a benchmark says how many epochs it takes (RoBERTa's way of tuning)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one benchmark.

    Attributes:
        benchmark: Its name.
        status: Whether there are numbers, and if not, whose fault that is.
        values: The numbers of each part that was scored.
        reasons: What is missing, or why there are none.
        model: The folder that was scored.
        data: What it was scored on.
        inputs: What the numbers depend on; with the same inputs they are not computed again.
        seconds: How long it took.
        commit: Of the code.
    """

    benchmark: str
    status: Status
    values: Mapping[str, tuple[MetricValue, ...]] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    model: str = ""
    data: tuple[str, ...] = ()
    inputs: str = ""
    seconds: float = 0.0
    commit: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """How benchmarks are scored.

    Attributes:
        data: Where their data come from.
        out: Receives fine-tuned models.
        models: A folder of fine-tuned models, by the names of `Benchmark.model`; None for none.
        train: Whether to fine-tune the models that are not there.
        scale: Of the recipes that fine-tune.
        limit: Only so many records of each part; None for all.
        max_steps: Only so many steps of each fine-tuning; None for the recipe's.
        num_threads: CPU threads of training; None leaves torch's choice.
        console: Where training reports.
    """

    data: BenchmarkData
    out: Path
    models: Path | None = None
    train: bool = False
    scale: str = "base"
    limit: int | None = None
    max_steps: int | None = None
    num_threads: int | None = None
    console: Console = field(default_factory=lambda: Console(stderr=True))


class Store:
    """Outcomes in a JSON file, written after each, so that an interrupted suite goes on.

    Attributes:
        beside: What the file says beside the outcomes, such as the machine.
    """

    def __init__(self, path: Path, beside: Mapping[str, object]) -> None:
        """Read what an earlier call has left.

        Raises:
            ConfigError: The file is of something else.
        """
        self.path = path
        self.beside = dict(beside)
        self.outcomes: dict[str, Outcome] = {}
        if not path.is_file():
            return
        try:
            stored = read_json_object(path)["outcomes"]
            self.outcomes = {key: _outcome(plain) for key, plain in stored.items()}
        except BAD_CONTENT as error:
            raise ConfigError(
                f"{path} is no file of results: choose another folder with --out, or delete it"
            ) from error

    def add(self, key: str, outcome: Outcome) -> None:
        """Store an outcome at once."""
        self.outcomes[key] = outcome
        self.write()

    def write(self) -> None:
        """Write all outcomes, and what belongs beside them."""
        plain = {key: asdict(outcome) for key, outcome in self.outcomes.items()}
        write_json(self.path, {**self.beside, "outcomes": plain})


def _outcome(plain: Mapping[str, Any]) -> Outcome:
    values = {
        part: tuple(MetricValue(**value) for value in found)
        for part, found in plain["values"].items()
    }
    texts = {name: tuple(plain[name]) for name in ("reasons", "data")}
    return Outcome(**{**plain, "values": values, **texts})


def score_benchmark(
    benchmark: Benchmark,
    base: Path | None,
    scoring: Scoring,
    earlier: Outcome | None = None,
    on_start: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Score a model on a benchmark, after fine-tuning where that is asked for.

    Args:
        benchmark: What to score on.
        base: The pre-trained model; None where there is none, and only fine-tuned ones count.
        scoring: How.
        earlier: What an earlier call gave; taken as it is where nothing has changed since.
        on_start: Told before something that may take long.

    Returns:
        The outcome; errors that a user can do something about are reasons in it.
    """
    official = isinstance(scoring.data, OfficialData)
    known = evaluations()
    if official and benchmark.hidden:
        return Outcome(benchmark=benchmark.name, status="impossible", reasons=(benchmark.hidden,))
    if benchmark.way != "probe" and benchmark.task not in known:
        reason = f"this version has no task {benchmark.task!r}"
        return Outcome(benchmark=benchmark.name, status="impossible", reasons=(reason,))
    try:
        return _score(benchmark, base, scoring, earlier, on_start)
    except _ImpossibleError as reason:
        return Outcome(benchmark=benchmark.name, status="impossible", reasons=(str(reason),))
    except TriptychError as error:
        return Outcome(benchmark=benchmark.name, status="failed", reasons=(str(error),))


class _ImpossibleError(Exception):
    """The model cannot do what a benchmark asks, whatever is there."""


def _score(
    benchmark: Benchmark,
    base: Path | None,
    scoring: Scoring,
    earlier: Outcome | None,
    on_start: Callable[[str], None],
) -> Outcome:
    needed = dict.fromkeys([*benchmark.splits, *_train_parts(benchmark, scoring, base)])
    places = {part: scoring.data.find(benchmark, part) for part in needed}
    missing = [text for place in places.values() for text in place.missing]
    first = starting_benchmark(benchmark)
    if first is not None and _train_parts(benchmark, scoring, base):
        parts = _train_parts(first, scoring, None)
        missing += [text for part in parts for text in scoring.data.find(first, part).missing]
    folder: Path | None = base
    if benchmark.way == "finetune":
        folder = _existing_model(benchmark, base, scoring)
        if folder is None and (not scoring.train or base is None):
            _check_able(benchmark, base, scoring)
            missing.append(_missing_model(benchmark, base, scoring))
    elif base is None:
        missing.append("a pre-trained model")
    if missing:
        return Outcome(
            benchmark=benchmark.name, status="missing", reasons=tuple(dict.fromkeys(missing))
        )
    start = time.perf_counter()
    sources = {part: place.source for part, place in places.items() if place.source is not None}
    if folder is None and base is not None:
        on_start(f"fine-tuning {benchmark.model}")
        folder = fine_tune(benchmark, base, scoring)
    assert folder is not None, "a missing model is a reason"
    inputs = _inputs(benchmark, folder, sources, scoring)
    if earlier is not None and earlier.status == "scored" and earlier.inputs == inputs:
        return earlier
    on_start(f"scoring {benchmark.title}")
    values = {
        part: tuple(evaluate_part(benchmark, folder, part, sources, scoring.limit))
        for part in benchmark.splits
    }
    return Outcome(
        benchmark=benchmark.name,
        status="scored",
        values=values,
        model=str(folder),
        data=tuple(sources[part].path for part in benchmark.splits),
        inputs=inputs,
        seconds=round(time.perf_counter() - start, 1),
        commit=current_commit(),
    )


def starting_benchmark(benchmark: Benchmark) -> Benchmark | None:
    """Return the benchmark whose fine-tuned model another's fine-tuning starts from."""
    known = (other for other in BENCHMARKS.values() if other.model == benchmark.start)
    return next(known) if benchmark.start else None


def _train_parts(benchmark: Benchmark, scoring: Scoring, base: Path | None) -> tuple[str, ...]:
    """Return the parts of the data set that must be there beside those to score on."""
    if benchmark.way == "probe":
        return benchmark.train
    is_trained = benchmark.way == "finetune" and scoring.train
    return benchmark.train if is_trained and not _existing_model(benchmark, base, scoring) else ()


def _existing_model(benchmark: Benchmark, base: Path | None, scoring: Scoring) -> Path | None:
    """Return the folder of the model that is fine-tuned for a benchmark; None if there is none."""
    places = [] if scoring.models is None else [scoring.models / benchmark.model]
    for place in (*places, scoring.out / MODELS / benchmark.model):
        for folder in (place / MODEL_FOLDER, place):
            if (folder / "config.json").is_file():
                return folder
    return base if base is not None and _is_tuned_for(base, benchmark.task) else None


def _is_tuned_for(folder: Path, task: str) -> bool:
    """Return whether a model was fine-tuned for a task; pre-training alone does not count."""
    words = {
        spec.trained_for for spec in TASKS.values() if task in spec.uses() and not spec.pretrains
    }
    return bool(words & set(_facts(folder).trained_for))


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is asked of a model folder again and again."""

    family: str
    trained_for: tuple[str, ...]
    digest: str


@cache
def _facts(folder: Path) -> _Facts:
    loaded = load_model(folder, device="cpu")
    family = kind_of(type(loaded.model.config))
    return _Facts(family, tuple(loaded.settings.trained_for), hash_model_folder(loaded.folder))


def _missing_model(benchmark: Benchmark, base: Path | None, scoring: Scoring) -> str:
    """Return what to do for a benchmark that no model is fine-tuned for."""
    where = "MODELS" if scoring.models is None else str(scoring.models)
    train = "" if base is None else ", or fine-tune it with --train"
    return f"a model fine-tuned for {benchmark.model}: {where}/{benchmark.model}/model{train}"


def recipe_name(benchmark: Benchmark, family: str) -> str | None:
    """Return the recipe that fine-tunes a family for a benchmark; None if there is none."""
    own = f"{family}.{benchmark.recipe}"
    known = RECIPES.entries()
    return own if own in known else benchmark.fallback if benchmark.fallback in known else None


def _check_able(benchmark: Benchmark, base: Path | None, scoring: Scoring) -> None:
    """Raise where no recipe can teach the model a benchmark's task."""
    if base is None:
        return
    facts = _facts(base)
    name = recipe_name(benchmark, facts.family)
    if name is None:
        raise _ImpossibleError(f"no recipe teaches {benchmark.task} to models of {facts.family}")
    models = task_spec(build_recipe(name, scoring.scale).task).models
    if not models.accept(load_model(base, device="cpu").model):
        raise _ImpossibleError(f"{name} trains {models.words()}, and this is of {facts.family}")


def tuning_run(benchmark: Benchmark, start: Path, scoring: Scoring) -> RunConfig:
    """Return the run that fine-tunes a model for a benchmark.

    Args:
        benchmark: What for.
        start: The model.
        scoring: Says at which scale, and on whose data.

    Raises:
        DataError: The training data cannot be read.
    """
    name = recipe_name(benchmark, _facts(start).family)
    assert name is not None, "checked before"
    config = build_recipe(name, scoring.scale)
    places = [scoring.data.find(benchmark, part) for part in benchmark.train]
    sources = tuple(place.source for place in places if place.source is not None)
    if scoring.scale in PAPER_SCALES:
        config = with_changes(config, benchmark.changes)
        if benchmark.epochs is not None:
            config = _in_epochs(config, sources, benchmark.epochs)
    steps = min(config.train.max_steps, scoring.max_steps or config.train.max_steps)
    return replace(
        config,
        model=replace(config.model, init_from=str(start)),
        data=replace(config.data, train=sources),
        optim=replace(config.optim, warmup_steps=min(config.optim.warmup_steps, steps)),
        train=replace(config.train, max_steps=steps, num_threads=scoring.num_threads),
    )


def _in_epochs(config: RunConfig, sources: Sequence[DataSourceConfig], epochs: int) -> RunConfig:
    """Return the run with so many passes over its data, of which a part warms up."""
    number = sum(len(read_records(source).records) for source in sources)
    steps = max(1, math.ceil(epochs * number / config.train.global_batch_size))
    warmup = round(WARMUP_SHARE * steps)
    return replace(
        config,
        optim=replace(config.optim, warmup_steps=warmup),
        train=replace(config.train, max_steps=steps),
    )


def fine_tune(benchmark: Benchmark, base: Path, scoring: Scoring) -> Path:
    """Fine-tune a model for a benchmark, or go on with that; return its model folder.

    Raises:
        ConfigError: The folder holds a run from another model, or on other data.
    """
    _check_able(benchmark, base, scoring)
    folder = scoring.out / MODELS / benchmark.model
    first = starting_benchmark(benchmark)
    start = base
    if first is not None:
        start = _existing_model(first, None, scoring) or fine_tune(first, base, scoring)
    config = tuning_run(benchmark, start, scoring)
    if (folder / CONFIG_FILE).is_file():
        stored = load_yaml(RunConfig, folder / CONFIG_FILE)
        ours = (config.model.init_from, [source.path for source in config.data.train])
        if (stored.model.init_from, [source.path for source in stored.data.train]) != ours:
            raise ConfigError(
                f"{folder} holds a run from {stored.model.init_from} on other data or from another "
                "model: choose another folder with --out, or delete it"
            )
    if not is_finished(folder):
        finish_run(config, folder, console=scoring.console)
    return folder / MODEL_FOLDER


def evaluate_part(
    benchmark: Benchmark,
    folder: Path,
    part: str,
    sources: Mapping[str, DataSourceConfig],
    limit: int | None = None,
) -> list[MetricValue]:
    """Return the numbers of one part of a benchmark's data.

    Args:
        benchmark: Says by what protocol.
        folder: The model.
        part: Such as "test".
        sources: By part, the training data of a probe included.
        limit: Only so many records.
    """
    if benchmark.way == "probe":
        train = sources[benchmark.train[0]]
        return probe_folder(folder, train, None, sources[part], limit=limit)[0]
    captions = CAPTIONS_PER_IMAGE if benchmark.task == "retrieval" else None
    return evaluate_model(
        folder,
        benchmark.task,
        sources[part],
        limit=limit,
        rerank_top_k=benchmark.rerank_top_k,
        settings=EvalSettings(
            captions_per_image=captions,
            num_frames=benchmark.num_frames,
            generation=GenerationSettings(prompt=benchmark.prompt),
            java_metrics=usable_java_metrics() if benchmark.task == "caption" else (),
        ),
    )


def _inputs(
    benchmark: Benchmark,
    folder: Path,
    sources: Mapping[str, DataSourceConfig],
    scoring: Scoring,
) -> str:
    """Return what the numbers depend on, in one word."""
    read = (*benchmark.splits, *(benchmark.train if benchmark.way == "probe" else ()))
    facts = {
        "model": _facts(folder).digest,
        "benchmark": repr(benchmark),
        "data": {part: _stamp(sources[part]) for part in read},
        "limit": scoring.limit,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _stamp(source: DataSourceConfig) -> list[Any]:
    path = Path(source.path)
    size = path.stat().st_size if path.is_file() else None
    return [str(path.resolve()), source.split, source.image_root, size]


def number_of(benchmark: Benchmark, metric: str, outcome: Outcome) -> float | None:
    """Return a number under the paper's name for it, from 0 to 1 (CIDEr: to 10).

    Args:
        benchmark: What was scored.
        metric: A key of its `metrics`.
        outcome: What came out.

    Returns:
        The mean over our metrics of that name and over parts; None where one is not there.
    """
    found = [
        value
        for part in benchmark.splits
        for name in benchmark.metrics[metric]
        for value in _named(outcome.values.get(part, ()), name, benchmark.rerank_top_k > 0)
    ]
    wanted = len(benchmark.splits) * len(benchmark.metrics[metric])
    return sum(v.value for v in found) / wanted if len(found) == wanted else None


def named_value(benchmark: Benchmark, outcome: Outcome, part: str, name: str) -> MetricValue | None:
    """Return one of our metrics of one part; where ITM re-ranks, what that gave."""
    found = _named(outcome.values.get(part, ()), name, benchmark.rerank_top_k > 0)
    return found[0] if found else None


def interval_of(
    benchmark: Benchmark, metric: str, outcome: Outcome
) -> tuple[float, float, int] | None:
    """Return a number's 95 % interval and how many items it is of; None where it is a mean."""
    names = benchmark.metrics[metric]
    if len(benchmark.splits) > 1 or len(names) > 1:
        return None
    part = outcome.values.get(benchmark.splits[0], ())
    found = _named(part, names[0], benchmark.rerank_top_k > 0)
    return (found[0].low, found[0].high, found[0].num_items) if found else None


def protocol_of(benchmark: Benchmark, metric: str, outcome: Outcome) -> str:
    """Return how a number was measured, in words."""
    for part in benchmark.splits:
        for name in benchmark.metrics[metric]:
            for value in _named(outcome.values.get(part, ()), name, benchmark.rerank_top_k > 0):
                return value.protocol
    return ""


def _named(values: Sequence[MetricValue], name: str, second_stage: bool) -> list[MetricValue]:
    """Return the value of a name, that after re-ranking where there was one."""
    names = (f"{name}_itm", name) if second_stage else (name,)
    for wanted in names:
        found = [value for value in values if value.name == wanted]
        if found:
            return found[:1]
    return []
