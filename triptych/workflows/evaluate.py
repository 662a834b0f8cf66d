"""Score a model folder on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from triptych.core.config import check
from triptych.core.errors import DataError
from triptych.core.outputs import MetricValue, Predictions
from triptych.data.check import CLIPS_ARE_NOT_READ, clip_problem
from triptych.data.collate.base import image_key
from triptych.data.manifest import FoundRecords, read_records
from triptych.data.records import Record
from triptych.data.skips import VERB_FLAG, SkipLog
from triptych.data.source import DataSourceConfig, parts_note
from triptych.data.stream import BatchLoader, build_loader
from triptych.data.transforms.pipeline import ImageTransform
from triptych.evaluation.evaluator import PredictingTask, evaluate
from triptych.evaluation.zero_shot import TEMPLATES
from triptych.serving.loading import LoadedModel, load_model
from triptych.tasks.registry import build_collator, evaluation_of, find_evaluation
from triptych.tasks.spec import Evaluation
from triptych.train.task import Task
from triptych.workflows.frozen import evaluate_zero_shot, read_labelled
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
    """

    captions_per_image: int | None = None
    folds: int = 1
    templates: tuple[str, ...] = TEMPLATES
    label_pattern: str | None = None
    num_frames: int | None = None

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
    find_evaluation(task)
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
    _check_limit(limit)
    if settings.num_frames is not None:
        loaded = replace(loaded, image=replace(loaded.image, num_frames=settings.num_frames))
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
    if any(record.image is None and record.video is not None for record in records):
        seen = f" Of each clip {loaded.image.num_frames} evenly spread frames are read."
        values = [replace(value, protocol=value.protocol + seen) for value in values]
    scored.tell(*logs)
    if on_skipped is not None and found.parts:
        on_skipped(parts_note(source.path, found.parts))
    return values


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
            templates=self.settings.templates,
            local_batch_size=self.local_batch_size,
            device=self.device,
            progress=self.progress,
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
            bound = self.loaded.build_task(self.task)
            bound.modules.to(self.device)
        config = self.loaded.task_config(self.task)
        return evaluate(
            _Keeping(bound, self.keep),
            evaluation_loader(self.loaded, self.task, records, self.local_batch_size, log),
            scoring.metrics(config, records, all_records),
            device=self.device,
            progress=self.progress,
        )


def evaluation_records(
    records: Sequence[Record], scoring: Evaluation[Any], where: str
) -> list[Record]:
    """Return the records that a task can be scored on.

    Raises:
        DataError: There is none.
    """
    usable = [
        record
        for record in records
        if _has_images(record, scoring) and getattr(record, scoring.field) not in (None, (), "")
    ]
    if scoring.one_per_image:
        usable = list({image_key(r): r for r in reversed(usable)}.values())[::-1]
    if not usable:
        one = "an image or a clip and " if scoring.reads_clips else "an image and "
        beside = ("", one, "two images and ")[scoring.num_images]
        why = f" (each {CLIPS_ARE_NOT_READ})" if records and all(map(clip_problem, records)) else ""
        raise DataError(
            f"{where} holds nothing to evaluate {scoring.name} on: {len(records)} records, none "
            f"with {beside}{scoring.field}{why * (not scoring.reads_clips)}"
        )
    return usable


def _has_images(record: Record, scoring: Evaluation[Any]) -> bool:
    if scoring.num_images == 1:
        return record.image is not None or (scoring.reads_clips and record.video is not None)
    return scoring.num_images == 0 or len(record.images) == 2


def evaluation_loader(
    loaded: LoadedModel,
    task: str,
    records: Sequence[Record],
    local_batch_size: int,
    skip_log: SkipLog | None = None,
) -> BatchLoader:
    """Return each record once, prepared as the model wants it."""
    return build_loader(
        records,
        build_collator(
            loaded.task_config(task),
            loaded.tokenizer,
            loaded.captions(),
            loaded.lengths(),
            train=False,
        ),
        ImageTransform(replace(loaded.image, image_size=loaded.model.image_size), train=False),
        seed=0,
        local_batch_size=local_batch_size,
        train=False,
        skip_log=skip_log,
    )


@dataclass(slots=True)
class _Keeping:
    """A task that also hands its predictions to a listener."""

    task: PredictingTask
    keep: Callable[[Predictions], None] | None

    @property
    def modules(self) -> torch.nn.ModuleDict:
        return self.task.modules

    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        predictions = self.task.predict(batch)
        if self.keep is not None:
            self.keep(predictions)
        return predictions
