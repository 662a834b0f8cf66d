"""Score a model folder on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from triptych.core.config import check
from triptych.core.errors import ConfigError, DataError, nearest
from triptych.core.outputs import MetricValue, Predictions
from triptych.data.collate.base import image_key
from triptych.data.manifest import read_records
from triptych.data.records import Record
from triptych.data.skips import VERB_FLAG, SkipLog
from triptych.data.source import DataSourceConfig, parts_note
from triptych.data.stream import BatchLoader, build_loader
from triptych.data.transforms.pipeline import ImageTransform
from triptych.evaluation.evaluator import PredictingTask, evaluate
from triptych.evaluation.label_metrics import AUROCMetric, BinaryMetric, CorrelationMetric
from triptych.evaluation.metrics import (
    BoxMetric,
    CaptionMetric,
    ClassificationMetric,
    Metric,
    VQAMetric,
)
from triptych.evaluation.zero_shot import TEMPLATES
from triptych.recipes.config import TaskConfig
from triptych.tasks.finetuning.image_text_classification import (
    AnswerClassificationConfig,
    ImageTextClassificationConfig,
)
from triptych.tasks.finetuning.nlvr2 import TRUTH
from triptych.tasks.finetuning.text_classification import TextClassificationConfig
from triptych.train.precision import autocast, resolve_precision
from triptych.workflows.frozen import evaluate_zero_shot, read_labelled
from triptych.workflows.kinds import build_collator
from triptych.workflows.loaded import TRAINED, LoadedModel, load_for_evaluation
from triptych.workflows.retrieval_scores import (
    RetrievalProtocol,
    evaluate_retrieval,
    first_captions,
)

EvalTask = Literal[
    "caption",
    "retrieval",
    "vqa",
    "grounding",
    "nlvr2",
    "snli_ve",
    "classification",
    "zero_shot",
]


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
    """

    captions_per_image: int | None = None
    folds: int = 1
    templates: tuple[str, ...] = TEMPLATES
    label_pattern: str | None = None

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
    left_out: Callable[[str], None] | None = None,
) -> list[MetricValue]:
    """Predict every sample of a source once and score the predictions.

    Args:
        folder: A model folder.
        task: caption, retrieval, vqa, grounding, nlvr2, snli_ve, classification or zero_shot.
        source: Held-out data.
        limit: Only the first so many records.
        rerank_top_k: Candidates of each query that ITM scores anew; 0 leaves ITM out.
        itm_score: Whether ITM alone ranks them, or ITM plus the similarity.
        settings: How single tasks are scored.
        local_batch_size: Samples at a time.
        max_bad_share: Share of samples that may be unreadable.
        keep: Called with the predictions of each batch.
        progress: Called after each batch with the number of samples done.
        left_out: Called at the end with what was unreadable, in words, if anything was; and with
            the parts of a file that was read whole, where none was asked for.

    Raises:
        CapabilityError: The model was not trained for the task.
        ConfigError: No such task, or a limit below 1.
        DataError: The data lack what the task needs, or too much of them is bad.
    """
    if task not in TRAINED:
        raise ConfigError(
            f"unknown task {task!r}{nearest(task, TRAINED)} (known: {', '.join(TRAINED)})"
        )
    check(limit is None or limit >= 1, "limit", limit, "be at least 1, or absent for all")
    loaded = load_for_evaluation(folder)
    loaded.check_trained(task)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scored = _Scored(loaded, task, settings, local_batch_size, device, keep, progress, left_out)
    if task == "zero_shot":
        return scored.by_names(source, limit, max_bad_share)
    found = read_records(source)
    text_only = task == "classification" and _is_of_texts(loaded)
    usable = evaluation_records(found.records, task, source.path, text_only=text_only)
    if task == "retrieval":
        usable = first_captions(usable, settings.captions_per_image)
    records = usable[:limit]
    log = SkipLog(None, len(usable) + len(found.skipped), max_bad_share, flag=VERB_FLAG)
    log.add_all(found.skipped)
    logs = [log]
    if len(records) < len(usable):  # bad lines are judged with the whole file, images without it
        logs.append(SkipLog(None, len(records), max_bad_share, flag=VERB_FLAG))
    loaded.model.to(device)
    with autocast(device, resolve_precision("auto", device, loaded.model)):
        if task == "retrieval":
            protocol = RetrievalProtocol(
                rerank_top_k=rerank_top_k, itm_score=itm_score, folds=settings.folds
            )
            values = scored.by_retrieval(records, protocol, logs[-1])
        else:
            values = scored.by_predictions(records, found.records, logs[-1])
    scored.tell(*logs)
    if left_out is not None and found.parts:
        left_out(parts_note(source.path, found.parts))
    return values


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
    left_out: Callable[[str], None] | None

    def tell(self, *logs: SkipLog) -> None:
        for log in logs:
            if self.left_out is not None and log.num_bad:
                self.left_out(log.report())

    def by_names(
        self, source: DataSourceConfig, limit: int | None, max_bad_share: float
    ) -> list[MetricValue]:
        data = read_labelled(
            source,
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
        self, records: list[Record], all_records: list[Record], log: SkipLog
    ) -> list[MetricValue]:
        bound = self.loaded.build_task(self.task)
        bound.modules.to(self.device)
        config = self.loaded.task_config(self.task)
        return evaluate(
            _Keeping(bound, self.keep),
            evaluation_loader(self.loaded, self.task, records, self.local_batch_size, log),
            _metrics(config, self.task, records, all_records),
            device=self.device,
            progress=self.progress,
        )


def evaluation_records(
    records: list[Record], task: str, where: str, *, text_only: bool = False
) -> list[Record]:
    """Return the records that a task can be scored on; for captions, one an image.

    Raises:
        DataError: There is none.
    """
    needed = {
        "caption": "caption",
        "retrieval": "caption",
        "vqa": "answers",
        "grounding": "box",
        "nlvr2": "label",
        "snli_ve": "label",
        "classification": "label",
    }[task]
    of_pairs = task == "nlvr2"
    usable = [
        record
        for record in records
        if (_has_images(record, of_pairs) or text_only)
        and getattr(record, needed) not in (None, (), "")
    ]
    if task == "caption":
        usable = list({image_key(r): r for r in reversed(usable)}.values())[::-1]
    if not usable:
        beside = "" if text_only else "two images and " if of_pairs else "an image and "
        raise DataError(
            f"{where} holds nothing to evaluate {task} on: {len(records)} records, none with "
            f"{beside}{needed}"
        )
    return usable


def _has_images(record: Record, of_pairs: bool) -> bool:
    return len(record.images) == 2 if of_pairs else record.image is not None


def caption_references(records: list[Record], all_records: list[Record]) -> dict[int, list[str]]:
    """Return all captions of each record's image, by position."""
    by_image: dict[int, list[str]] = {}
    for record in all_records:
        if record.image is not None and record.caption:
            by_image.setdefault(image_key(record), []).append(record.caption)
    return {i: by_image[image_key(record)] for i, record in enumerate(records)}


def evaluation_loader(
    loaded: LoadedModel,
    task: str,
    records: list[Record],
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


def _is_of_texts(loaded: LoadedModel) -> bool:
    """Return whether the folder's last task reads no images."""
    return isinstance(loaded.task_config("classification"), TextClassificationConfig)


def _metrics(
    config: TaskConfig, task: str, records: list[Record], all_records: list[Record]
) -> list[Metric]:
    if task == "vqa":
        answers = {i: r.answers for i, r in enumerate(records)}
        types = {i: r.question_type for i, r in enumerate(records)}
        closed = isinstance(config, AnswerClassificationConfig)
        return [VQAMetric(answers, types, from_list=closed)]
    if task == "grounding":
        return [BoxMetric({i: r.box for i, r in enumerate(records) if r.box is not None})]
    if task == "nlvr2":
        truth = {i: TRUTH[bool(r.label)] for i, r in enumerate(records)}
        return [ClassificationMetric(truth, task, with_majority=True)]
    if task == "snli_ve":
        relations = {i: str(r.label) for i, r in enumerate(records)}
        return [ClassificationMetric(relations, task, with_majority=True)]
    if isinstance(config, (ImageTextClassificationConfig, TextClassificationConfig)):
        return classification_metrics(config, records)
    return [CaptionMetric(caption_references(records, all_records))]


def classification_metrics(
    config: ImageTextClassificationConfig | TextClassificationConfig, records: list[Record]
) -> list[Metric]:
    """Return what a classifier is scored by.

    Accuracy; of two classes also AUROC, F1 and Matthews' correlation, the second being the positive
    one; of numbers the correlations alone.

    Raises:
        DataError: A label is no number where numbers are predicted.
    """
    if isinstance(config, TextClassificationConfig) and config.target == "number":
        values = {i: r.label for i, r in enumerate(records) if isinstance(r.label, (int, float))}
        if len(values) < len(records):
            raise DataError("the model predicts numbers, and a label is none")
        return [CorrelationMetric({i: float(value) for i, value in values.items()})]
    labels = {i: str(record.label) for i, record in enumerate(records)}
    metrics: list[Metric] = [ClassificationMetric(labels)]
    if len(config.labels) == 2:
        positive = config.labels[1]
        if len(set(labels.values())) > 1:  # a small part of the data may hold one class alone
            metrics.append(AUROCMetric(labels, positive=positive))
        metrics += [
            BinaryMetric(labels, positive=positive, kind="f1"),
            BinaryMetric(labels, positive=positive, kind="matthews"),
        ]
    return metrics
