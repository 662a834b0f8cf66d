"""Score a model folder on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from triptych.core.config import check
from triptych.core.errors import ConfigError, DataError
from triptych.core.machine import num_cores
from triptych.core.outputs import MetricValue, Predictions
from triptych.data.manifest import FoundRecords, read_records
from triptych.data.records import Record
from triptych.data.skips import VERB_FLAG, SkipLog
from triptych.data.source import DataSourceConfig, parts_note
from triptych.distributed.env import run_processes, world_size
from triptych.evaluation.evaluator import evaluate
from triptych.evaluation.metrics import JavaMetric, add_java_metrics
from triptych.evaluation.zero_shot import TEMPLATES
from triptych.serving.loading import LoadedModel, load_model
from triptych.tasks.finetuning.text_generator import GenerationSettings
from triptych.tasks.registry import evaluation_of, find_evaluation
from triptych.tasks.spec import Evaluation
from triptych.train.task import Task
from triptych.workflows.frozen import evaluate_zero_shot, read_labelled
from triptych.workflows.predictors import (
    Asked,
    as_asked,
    build_predictor,
    check_generation,
    evaluation_loader,
    evaluation_records,
)
from triptych.workflows.search import RetrievalProtocol, evaluate_retrieval, first_captions


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings:
    """How single tasks are scored.

    Attributes:
        captions_per_image: Retrieval: only the first so many captions of each image; None takes
            all. 5 makes COCO's test split 5,000 images and 25,000 captions.
        folds: Retrieval: parts of equally many images that are searched apart. 5 is the "1K"
            protocol of COCO's test split, 1 the "5K" one.
        templates: Zero-shot: sentences about a class; `{}` is its name.
        label_pattern: Zero-shot: a regular expression whose first group in a label is the class.
        num_frames: Frames that are taken of a clip, evenly spread; None takes the model folder's.
        classes: Zero-shot: names of the classes; those of the data if empty.
        answers: Questions: answers to choose from, each ranked by its likelihood; if empty, the
            model folder's way.
        generation: How texts are generated, for tasks that do.
        java_metrics: Captions: out of "meteor" and "spice", which need Java.
    """

    captions_per_image: int | None = None
    folds: int = 1
    templates: tuple[str, ...] = TEMPLATES
    label_pattern: str | None = None
    num_frames: int | None = None
    classes: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    java_metrics: tuple[JavaMetric, ...] = ()

    def __post_init__(self) -> None:
        """Reject counts out of range."""
        most = self.captions_per_image
        check(most is None or most >= 1, "captions_per_image", most, "be at least 1, or absent")
        check(self.folds >= 1, "folds", self.folds, "be at least 1")


def evaluate_model(
    folder: Path,
    task: str,
    source: DataSourceConfig,
    *,
    limit: int | None = None,
    rerank_top_k: int = 16,
    itm_score: Literal["itm", "itm+itc"] = "itm",
    settings: EvalSettings = EvalSettings(),
    local_batch_size: int = 128,
    max_bad_share: float = 0.01,
    keep: Callable[[Predictions], None] | None = None,
    progress: Callable[[int], None] | None = None,
    on_skipped: Callable[[str], None] | None = None,
    on_loaded: Callable[[LoadedModel], None] | None = None,
) -> list[MetricValue]:
    """Load a model folder, predict every sample of a source once and score the predictions.

    Args:
        folder: A model folder.
        task: The name of an `Evaluation` of a registered task, such as "caption".
        source: Held-out data.
        limit: As for `evaluate_loaded`, like all that follow but the last.
        rerank_top_k: Likewise.
        itm_score: Likewise.
        settings: Likewise.
        local_batch_size: Likewise.
        max_bad_share: Likewise.
        keep: Likewise.
        progress: Likewise.
        on_skipped: Likewise.
        on_loaded: Called with the model before anything is predicted.

    Raises:
        CapabilityError: The model was not trained for the task.
        ConfigError: No such task, or a limit below 1.
        DataError: The data lack what the task needs, or too much of them is bad.
    """
    scoring = find_evaluation(task)
    check_generation(scoring, settings.generation)
    if scoring.procedure != "predict":
        add_java_metrics([], settings.java_metrics)
    _check_limit(limit)
    loaded = load_model(folder)
    loaded.check_trained(task)
    if on_loaded is not None:
        on_loaded(loaded)
    return evaluate_loaded(
        loaded,
        task,
        source,
        limit=limit,
        rerank_top_k=rerank_top_k,
        itm_score=itm_score,
        settings=settings,
        local_batch_size=local_batch_size,
        max_bad_share=max_bad_share,
        keep=keep,
        progress=progress,
        on_skipped=on_skipped,
    )


def evaluate_in_processes(
    num_processes: int, task: str, ask: Callable[..., list[MetricValue]]
) -> tuple[list[MetricValue], list[str]]:
    """Score retrieval with several processes on this machine, which share the images.

    Args:
        num_processes: At least 2.
        task: The task that is scored; it must search.
        ask: `evaluate_model` with its arguments, none of them a function.

    Returns:
        The numbers, and what `on_skipped` is told.

    Raises:
        ConfigError: The task is another one.
    """
    if find_evaluation(task).procedure != "search":
        raise ConfigError(
            f"num_processes = {num_processes}: only retrieval is shared by processes; omit it"
        )
    return run_processes(_evaluate_share, num_processes, ask)


def _evaluate_share(
    ask: Callable[..., list[MetricValue]],
) -> tuple[list[MetricValue], list[str]]:
    said: list[str] = []
    torch.set_num_threads(max(1, num_cores() // world_size()))
    return ask(on_skipped=said.append), said


def evaluate_loaded(
    loaded: LoadedModel,
    task: str,
    source: DataSourceConfig,
    *,
    found: FoundRecords | None = None,
    bound: Task | None = None,
    limit: int | None = None,
    rerank_top_k: int = 16,
    itm_score: Literal["itm", "itm+itc"] = "itm",
    settings: EvalSettings = EvalSettings(),
    local_batch_size: int = 128,
    max_bad_share: float = 0.01,
    keep: Callable[[Predictions], None] | None = None,
    progress: Callable[[int], None] | None = None,
    on_skipped: Callable[[str], None] | None = None,
) -> list[MetricValue]:
    """Predict every sample of a source once with a model in memory, and score the predictions.

    The modes of its modules are those of before afterwards; whether it was trained for the task is
    not asked.

    Args:
        loaded: The model, on its device.
        task: The name of an `Evaluation` of a registered task, such as "caption".
        source: Held-out data.
        found: Its records, where they have been read.
        bound: The task that predicts, on the model's device, where it has been built.
        limit: Only the first so many records.
        rerank_top_k: Candidates of each query that ITM re-ranks; 0 disables it.
        itm_score: Whether ITM alone ranks them, or ITM plus the similarity.
        settings: How single tasks are scored.
        local_batch_size: Samples at a time.
        max_bad_share: Share of samples that may be unreadable.
        keep: Called with the predictions of each batch.
        progress: Called after each batch with the number of samples done.
        on_skipped: Called at the end with what was unreadable, in words, if anything was; and with
            the parts of a file that was read whole, where none was asked for.

    Raises:
        ConfigError: No such task, or a limit below 1.
        DataError: The data lack what the task needs, or too much of them is bad.
    """
    procedure = find_evaluation(task).procedure
    check_generation(find_evaluation(task), settings.generation)
    _check_limit(limit)
    loaded = as_asked(loaded, task, settings.num_frames, settings.answers)
    scored = _Scored(
        loaded, task, settings, local_batch_size, loaded.device, keep, progress, on_skipped, bound
    )
    if procedure == "names":
        return scored.by_names(source, found, limit, max_bad_share)
    found = read_records(source) if found is None else found
    scoring = evaluation_of(loaded.task_config(task), task)
    usable = evaluation_records(found.records, scoring, source.path)
    if procedure == "search":
        if len({record.image is None for record in usable}) > 1:
            raise DataError(f"{source.path} holds images and clips: search them as two datasets")
        usable = first_captions(usable, settings.captions_per_image)
    records = usable[:limit]
    log = SkipLog(None, len(usable) + len(found.skipped), max_bad_share, flag=VERB_FLAG)
    log.add_all(found.skipped)
    logs = [log]
    if len(records) < len(usable):  # bad lines are judged with the whole file, images without it
        logs.append(SkipLog(None, len(records), max_bad_share, flag=VERB_FLAG))
    with loaded.autocast():
        if procedure == "search":
            protocol = RetrievalProtocol(
                rerank_top_k=rerank_top_k, itm_score=itm_score, folds=settings.folds
            )
            values = scored.by_retrieval(records, protocol, logs[-1])
        else:
            values = scored.by_predictions(scoring, records, found.records, logs[-1])
    scored.tell(*logs)
    if on_skipped is not None and found.parts:
        on_skipped(parts_note(source.path, found.parts))
    return with_frames(values, records, loaded.image.num_frames)


def with_frames(
    values: Sequence[MetricValue], records: Sequence[Record], num_frames: int
) -> list[MetricValue]:
    """Return numbers whose protocols say how many frames were read, where the records are clips."""
    if not any(record.image is None and record.video is not None for record in records):
        return list(values)
    seen = f" Of each clip {num_frames} evenly spread frames are read."
    return [replace(value, protocol=value.protocol + seen) for value in values]


def _check_limit(limit: int | None) -> None:
    check(limit is None or limit >= 1, "limit", limit, "be at least 1, or absent for all")


@dataclass(frozen=True, slots=True)
class _Scored:
    """A model that is being scored on a task."""

    loaded: LoadedModel
    task: str
    settings: EvalSettings
    local_batch_size: int
    device: torch.device
    keep: Callable[[Predictions], None] | None
    progress: Callable[[int], None] | None
    on_skipped: Callable[[str], None] | None
    bound: Task | None

    def tell(self, *logs: SkipLog) -> None:
        for log in logs:
            if self.on_skipped is not None and log.num_bad:
                self.on_skipped(log.report())

    def by_names(
        self,
        source: DataSourceConfig,
        found: FoundRecords | None,
        limit: int | None,
        max_bad_share: float,
    ) -> list[MetricValue]:
        data = read_labelled(
            source,
            found,
            label_pattern=self.settings.label_pattern,
            limit=limit,
            max_bad_share=max_bad_share,
        )
        values = evaluate_zero_shot(
            self.loaded,
            data,
            classes=self.settings.classes,
            templates=self.settings.templates,
            local_batch_size=self.local_batch_size,
            device=self.device,
            progress=self.progress,
            keep=self.keep,
        )
        self.tell(data.log)
        return values

    def by_retrieval(
        self, records: list[Record], protocol: RetrievalProtocol, log: SkipLog
    ) -> list[MetricValue]:
        return evaluate_retrieval(
            self.loaded,
            records,
            protocol,
            local_batch_size=self.local_batch_size,
            log=log,
            device=self.device,
            progress=self.progress,
        )

    def by_predictions(
        self,
        scoring: Evaluation[Any],
        records: Sequence[Record],
        all_records: Sequence[Record],
        log: SkipLog,
    ) -> list[MetricValue]:
        assert scoring.metrics is not None, f"{scoring.name} is scored by predictions"
        bound = self.bound
        if bound is None:
            bound = build_predictor(self.loaded, self.task, self.settings.generation)
        config = self.loaded.task_config(self.task)
        metrics = scoring.metrics(config, records, all_records)
        add_java_metrics(metrics, self.settings.java_metrics)
        return evaluate(
            Asked(bound, scoring.method, self.keep),
            evaluation_loader(self.loaded, self.task, records, self.local_batch_size, log),
            metrics,
            device=self.device,
            progress=self.progress,
        )
