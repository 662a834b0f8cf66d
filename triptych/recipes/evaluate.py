"""Score a model folder on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from triptych.checkpoint.model_folder import load_model_folder
from triptych.core.config import check, from_dict
from triptych.core.errors import CapabilityError, ConfigError, DataError, nearest
from triptych.core.outputs import MetricValue, Predictions
from triptych.data.caption_cleaning import clean_caption
from triptych.data.collate import PretrainingTextConfig
from triptych.data.collate.base import image_key
from triptych.data.manifest import read_records
from triptych.data.records import Record
from triptych.data.skips import SkipLog
from triptych.data.source import DataSourceConfig
from triptych.data.stream import BatchLoader, build_loader
from triptych.data.transforms.pipeline import ImageTransform, ImageTransformConfig
from triptych.evaluation.evaluator import PredictingTask, evaluate, evaluation_mode
from triptych.evaluation.metrics import (
    BoxMetric,
    CaptionMetric,
    Metric,
    RetrievalMetric,
    SecondStage,
    VQAMetric,
)
from triptych.models.mplug.model import MPLUG
from triptych.recipes.config import TaskConfig, TextLengths
from triptych.recipes.kinds import build_collator, build_task
from triptych.recipes.run import load_model
from triptych.tasks.finetuning.captioning import CaptioningConfig
from triptych.tasks.finetuning.grounding import GroundingConfig
from triptych.tasks.finetuning.retrieval import EncodedSet, RetrievalConfig, encode_set, score_pairs
from triptych.tasks.finetuning.vqa import VQAConfig
from triptych.text import Tokenizer
from triptych.train.precision import autocast, resolve_precision

EvalTask = Literal["caption", "retrieval", "vqa", "grounding"]
CONFIGS: dict[str, type[TaskConfig]] = {
    "caption": CaptioningConfig,
    "retrieval": RetrievalConfig,
    "vqa": VQAConfig,
    "grounding": GroundingConfig,
}
TRAINED = {
    "caption": {"pretraining", "captioning"},
    "retrieval": {"pretraining", "retrieval"},
    "vqa": {"vqa"},
    "grounding": {"grounding"},
}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model folder, ready to predict.

    Attributes:
        model: The model, on the CPU or a GPU.
        tokenizer: Its tokenizer.
        image: How its pictures are prepared.
        config: The folder's `config.json`.
    """

    model: MPLUG
    tokenizer: Tokenizer
    image: ImageTransformConfig
    config: dict[str, object]

    def task_config(self, task: str) -> TaskConfig:
        """Return the stored settings of a task, or its defaults where it was trained for more."""
        stored = self.config.get("task")
        wanted = CONFIGS[task]
        if isinstance(stored, dict) and stored.get("kind") == task_kind(task):
            return from_dict(wanted, {k: v for k, v in stored.items() if k != "kind"}, "task")
        return wanted()

    def captions(self) -> PretrainingTextConfig:
        """Return the caption lengths that the model was trained with; the usual ones if absent."""
        return from_dict(PretrainingTextConfig, self._text("max_text_tokens", "max_words"), "text")

    def lengths(self) -> TextLengths:
        """Return the other texts' lengths that it was trained with; the usual ones if absent."""
        return from_dict(TextLengths, self._text("question", "answer", "phrase"), "text")

    def _text(self, *names: str) -> dict[str, object]:
        text = self.config.get("text")
        return {n: text[n] for n in names if n in text} if isinstance(text, dict) else {}


def task_kind(task: str) -> str:
    """Return the word for a task in a model folder's config."""
    return {"caption": "captioning"}.get(task, task)


def load_for_evaluation(folder: Path) -> LoadedModel:
    """Load a model folder.

    Raises:
        CheckpointError: It is incomplete or damaged.
    """
    stored = load_model_folder(folder)
    return LoadedModel(
        load_model(folder),
        Tokenizer.load(stored.tokenizer_path),
        from_dict(ImageTransformConfig, stored.preprocess, "preprocess"),
        stored.config,
    )


def evaluate_model(
    folder: Path,
    task: str,
    source: DataSourceConfig,
    *,
    limit: int | None = None,
    rerank_top_k: int = 16,
    itm_score: Literal["itm", "itm+itc"] = "itm",
    local_batch_size: int = 128,
    max_bad_share: float = 0.01,
    keep: Callable[[Predictions], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[MetricValue]:
    """Predict every sample of a source once and score the predictions.

    Args:
        folder: A model folder.
        task: caption, retrieval, vqa or grounding.
        source: Held-out data.
        limit: Only the first so many records.
        rerank_top_k: Candidates of each query that ITM scores anew; 0 leaves ITM out.
        itm_score: Whether ITM alone ranks them, or ITM plus the similarity.
        local_batch_size: Samples at a time.
        max_bad_share: Share of samples that may be unreadable.
        keep: Called with the predictions of each batch.
        progress: Called after each batch with the number of samples done.

    Raises:
        CapabilityError: The model was not trained for the task.
        ConfigError: No such task, or a limit below 1.
        DataError: The data lack what the task needs, or too much of them is bad.
    """
    if task not in CONFIGS:
        raise ConfigError(
            f"unknown task {task!r}{nearest(task, CONFIGS)} (known: {', '.join(CONFIGS)})"
        )
    check(limit is None or limit >= 1, "limit", limit, "be at least 1, or absent for all")
    loaded = load_for_evaluation(folder)
    _check_trained(loaded, task, folder)
    found = read_records(source)
    usable = evaluation_records(found.records, task, source.path)
    records = usable[:limit]
    log = SkipLog(None, len(usable) + len(found.skipped), max_bad_share)
    log.add_all(found.skipped)
    if len(records) < len(usable):  # bad lines are judged with the whole file, pictures without it
        log = SkipLog(None, len(records), max_bad_share)
    loader = evaluation_loader(loaded, task, records, local_batch_size, log)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded.model.to(device)
    precision = resolve_precision("auto", device, loaded.model)
    with autocast(device, precision):
        if task == "retrieval":
            return _evaluate_retrieval(
                loaded, loader, records, device, rerank_top_k, itm_score, progress
            )
        bound = build_task(loaded.task_config(task), loaded.model, loaded.tokenizer)
        return evaluate(
            _Keeping(bound, keep),
            loader,
            [_metric(task, records, found.records)],
            device=device,
            progress=progress,
        )


def evaluation_records(records: list[Record], task: str, where: str) -> list[Record]:
    """Return the records that a task can be scored on; for captions, one a picture.

    Raises:
        DataError: There is none.
    """
    field = {"caption": "caption", "retrieval": "caption", "vqa": "answers", "grounding": "box"}
    usable = [r for r in records if r.image is not None and getattr(r, field[task])]
    if task == "caption":
        usable = list({image_key(r): r for r in reversed(usable)}.values())[::-1]
    if not usable:
        raise DataError(
            f"{where} holds nothing to evaluate {task} on: {len(records)} records, none with an "
            f"image and {field[task]}"
        )
    return usable


def caption_references(records: list[Record], all_records: list[Record]) -> dict[int, list[str]]:
    """Return all captions of each record's picture, by position."""
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


def _metric(task: str, records: list[Record], all_records: list[Record]) -> Metric:
    if task == "vqa":
        return VQAMetric(
            {i: r.answers for i, r in enumerate(records)},
            {i: r.question_type for i, r in enumerate(records)},
        )
    if task == "grounding":
        return BoxMetric({i: r.box for i, r in enumerate(records) if r.box is not None})
    return CaptionMetric(caption_references(records, all_records))


def _evaluate_retrieval(
    loaded: LoadedModel,
    loader: BatchLoader,
    records: list[Record],
    device: torch.device,
    top_k: int,
    itm_score: Literal["itm", "itm+itc"],
    progress: Callable[[int], None] | None,
) -> list[MetricValue]:
    """Encode everything once; ITC ranks all pairs, ITM the first of each query."""
    captions = loaded.captions()
    cleaned = [clean_key(r.caption or "", captions.max_words) for r in records]
    with evaluation_mode(loaded.model), torch.inference_mode():
        encoded, index = encode_loader(loaded.model, loader, device, progress)
        row = {position: i for i, position in enumerate(index)}

        def score(images: Tensor, texts: Tensor) -> Tensor:
            rows = [[row[i] for i in images.tolist()], [row[t] for t in texts.tolist()]]
            pairs = torch.tensor(rows, device=device).T
            return score_pairs(loaded.model, encoded, pairs).cpu()

        stage = None
        if top_k > 0:
            stage = SecondStage(
                score_pairs=score,
                topk=min(top_k, len(index)),
                combine=itm_score,
                pairs_at_once=1 << 20,
            )
        metric = RetrievalMetric([image_key(r) for r in records], cleaned, stage)
        metric.update(
            Predictions(
                index=index,
                embeddings={
                    "image": encoded.image_embedding.cpu(),
                    "text": encoded.text_embedding.cpu(),
                },
            )
        )
        return metric.compute()


def clean_key(caption: str, max_words: int) -> str:
    """Return what two captions share when they count as the same."""
    return clean_caption(caption, max_words)


def encode_loader(
    model: MPLUG,
    loader: BatchLoader,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> tuple[EncodedSet, list[int]]:
    """Encode all batches once; also return the dataset positions, in order."""
    index: list[int] = []

    def moved() -> Iterator[dict[str, Tensor]]:
        for batch in loader:
            index.extend(batch["index"].tolist())
            if progress is not None:
                progress(len(index))
            yield {key: value.to(device) for key, value in batch.items()}

    return encode_set(model, moved()), index


def _check_trained(loaded: LoadedModel, task: str, folder: Path) -> None:
    trained = loaded.config.get("trained_for")
    words = trained if isinstance(trained, list) else []
    if not TRAINED[task] & set(words):
        raise CapabilityError(
            f"{folder} was trained for {', '.join(map(str, words)) or 'nothing known'}, not for "
            f"{task}: fine-tune it with `triptych train mplug.{task} --init-from {folder} --data "
            "PATH`"
        )
