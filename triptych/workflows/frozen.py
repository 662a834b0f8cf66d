"""Frozen models as classifiers: by the names of the classes, and by probes of their features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from triptych.core.config import check
from triptych.core.errors import CapabilityError, DataError
from triptych.core.outputs import MetricValue, Predictions
from triptych.data.caption_cleaning import clean_caption
from triptych.data.class_names import check_names
from triptych.data.collate import ImageKeyCollator
from triptych.data.collate.classification import ClassPicker, distinct_classes
from triptych.data.manifest import FoundRecords, read_records
from triptych.data.records import Record
from triptych.data.skips import VERB_FLAG, SkipLog
from triptych.data.source import DataSourceConfig
from triptych.data.stream import BatchLoader
from triptych.evaluation.evaluator import evaluation_mode, predict_batches
from triptych.evaluation.label_metrics import MeanPerClassMetric
from triptych.evaluation.linear_probe import LinearProbe, sweep_probe
from triptych.evaluation.metrics import ClassificationMetric
from triptych.evaluation.nearest import NearestProbe, choose_nearest
from triptych.evaluation.zero_shot import (
    TEMPLATES,
    TOP,
    ZeroShotMetric,
    class_embeddings,
    class_probabilities,
    prompts,
)
from triptych.serving.loading import LoadedModel, load_model
from triptych.tasks.registry import TASKS

HELD_OUT = 5  # of so many training images one chooses the penalty
TEXTS_AT_ONCE = 256
NOTHING_READ = "no image can be read; run `triptych data check` on the data"
Progress = Callable[[int], None]
Method = Literal["linear", "knn"]
METHODS: tuple[Method, ...] = get_args(Method)
Probe = LinearProbe | NearestProbe


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images of one split with their classes.

    Attributes:
        records: Those with an image and a label.
        labels: The class of each.
        log: Counts what cannot be read.
    """

    records: list[Record]
    labels: list[str]
    log: SkipLog


def read_labelled(
    source: DataSourceConfig,
    found: FoundRecords | None = None,
    *,
    label_pattern: str | None = None,
    limit: int | None = None,
    max_bad_share: float = 0.01,
) -> LabelledImages:
    """Read the images of a split that have a label.

    Args:
        source: Class folders, or a manifest with `image` and `label`.
        found: Its records, where they have been read.
        label_pattern: A regular expression whose first group in a label is the class; None takes
            the whole label.
        limit: Only the first so many records.
        max_bad_share: Share of samples that may be unreadable.

    Raises:
        ConfigError: The pattern is no regular expression with a group, or a label does not fit it.
        DataError: No image has a label, or too much of the data is bad.
    """
    found = read_records(source) if found is None else found
    usable = [r for r in found.records if r.image is not None and r.label is not None]
    if not usable:
        raise DataError(
            f"{source.path} holds no image with a label: give class folders, or a manifest with "
            "'image' and 'label'"
        )
    records = usable[:limit]
    log = SkipLog(None, len(usable) + len(found.skipped), max_bad_share, flag=VERB_FLAG)
    log.add_all(found.skipped)
    if len(records) < len(usable):
        log = SkipLog(None, len(records), max_bad_share, flag=VERB_FLAG)
    pick = ClassPicker(label_pattern)
    return LabelledImages(records, [pick(str(record.label)) for record in records], log)


def evaluate_zero_shot(
    loaded: LoadedModel,
    data: LabelledImages,
    *,
    classes: Sequence[str] = (),
    templates: Sequence[str] = TEMPLATES,
    local_batch_size: int = 128,
    device: torch.device,
    progress: Progress | None = None,
    keep: Callable[[Predictions], None] | None = None,
) -> list[MetricValue]:
    """Classify images by sentences about classes, and score it.

    Args:
        loaded: The model.
        data: The images.
        classes: Names of the classes; those of the data if empty.
        templates: Sentences about a class.
        local_batch_size: Images at a time.
        device: Where to compute.
        progress: Called with the number of images done.
        keep: Called with the predictions of each batch.

    Returns:
        "zero_shot", "zero_shot_top5" (with more than five classes) and "zero_shot_per_class", then
        each class's accuracy.

    Raises:
        DataError: No image can be read, too much is bad, or the classes are WordNet ids, which no
            model has read.
    """
    names = tuple(classes) or distinct_classes(data.labels)
    check_names(names)
    metric = ZeroShotMetric(dict(enumerate(data.labels)), len(names), len(templates))
    loader = image_loader(loaded, data.records, local_batch_size, data.log)
    done = 0
    with loaded.autocast():
        for predictions in predict_batches(
            ByNames(loaded, names, templates, device), loader, device=device
        ):
            metric.update(predictions)
            if keep is not None:
                keep(predictions)
            done += len(predictions.index)
            if progress is not None:
                progress(done)
    if done == 0:
        raise DataError(NOTHING_READ)
    return metric.compute()


class ByNames:
    """Predicts the class of images by sentences about the classes.

    Args:
        loaded: The model, on the device.
        names: Names of the classes.
        templates: Sentences about a class.
        device: Where to compute.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        names: Sequence[str],
        templates: Sequence[str],
        device: torch.device,
    ) -> None:
        self.modules = nn.ModuleDict({"model": loaded.model})
        self._model, self._names = loaded.model, tuple(names)
        with evaluation_mode(loaded.model), torch.inference_mode(), loaded.autocast():
            self._classes = name_embeddings(loaded, names, templates, device).cpu()

    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return "label", its "probability", and with more than five classes the "top5"."""
        images = self._model.embed_image(self._model.encode_image(batch["image"]))
        shares = class_probabilities(images.float().cpu(), self._classes)
        best = shares.argmax(dim=1)
        scores: dict[str, Any] = {
            "label": [self._names[number] for number in best.tolist()],
            "probability": shares.gather(1, best[:, None])[:, 0],
        }
        if len(self._names) > TOP:
            top = shares.topk(TOP, dim=1).indices.tolist()
            scores["top5"] = [[self._names[number] for number in row] for row in top]
        return Predictions(index=batch["index"].tolist(), scores=scores)


def name_embeddings(
    loaded: LoadedModel, names: Sequence[str], templates: Sequence[str], device: torch.device
) -> Tensor:
    """Return (C, E) embeddings of classes from sentences with their names.

    Sentences are cleaned as captions are in training.
    """
    captions = loaded.captions()
    sentences = [clean_caption(text, captions.max_words) for row in prompts(names, templates)
                 for text in row]  # fmt: skip
    encoded = loaded.tokenizer.encode(sentences, max_tokens=captions.max_text_tokens)
    parts = []
    for start in range(0, len(encoded), TEXTS_AT_ONCE):
        ids, mask = loaded.tokenizer.pad(encoded[start : start + TEXTS_AT_ONCE])
        features = loaded.model.encode_text(ids.to(device), mask.to(device))
        parts.append(loaded.model.embed_text(features).float())
    return class_embeddings(torch.cat(parts).view(len(names), len(templates), -1))


def probe_folder(
    folder: Path,
    train: DataSourceConfig,
    validation: DataSourceConfig | None,
    test: DataSourceConfig,
    *,
    method: Method = "linear",
    label_pattern: str | None = None,
    limit: int | None = None,
    local_batch_size: int = 128,
    max_bad_share: float = 0.01,
    on_loaded: Callable[[LoadedModel], None] | None = None,
) -> tuple[list[MetricValue], Probe]:
    """Fit a classifier on a model folder's frozen features, and score it.

    Args:
        folder: A model folder, whatever it was trained for.
        train: Labelled images to fit on.
        validation: Labelled images that choose the penalty, or the number of neighbours; None takes
            each fifth image of `train` for it.
        test: Labelled images to score on.
        method: A linear classifier, or the nearest neighbours.
        label_pattern: A regular expression whose first group in a label is the class.
        limit: Only the first so many images of `test`.
        local_batch_size: Images at a time.
        max_bad_share: Share of images that may be unreadable.
        on_loaded: Called with the model before anything is encoded.

    Raises:
        CapabilityError: The model never learned to read images.
        ConfigError: The pattern does not fit the labels.
        DataError: The data lack labels, or too much of them is bad.
    """
    splits = [
        read_labelled(
            source, label_pattern=label_pattern, limit=number, max_bad_share=max_bad_share
        )
        for source, number in ((train, None), (validation, None), (test, limit))
        if source is not None
    ]
    if validation is None:
        splits[:1] = hold_out_fifth(splits[0])
    loaded = load_model(folder)
    check_reads_images(loaded)
    if on_loaded is not None:
        on_loaded(loaded)
    return evaluate_probe(
        loaded, *splits, method=method, local_batch_size=local_batch_size, device=loaded.device
    )


def hold_out_fifth(data: LabelledImages) -> list[LabelledImages]:
    """Return all but each fifth image, and each fifth: of sets without a validation split."""
    rows = range(len(data.records))
    parts = ([i for i in rows if i % HELD_OUT], [i for i in rows if i % HELD_OUT == 0])
    return [
        LabelledImages(
            [data.records[i] for i in part],
            [data.labels[i] for i in part],
            SkipLog(None, len(part), data.log.max_share, flag=VERB_FLAG),
        )
        for part in parts
    ]


def check_reads_images(loaded: LoadedModel) -> None:
    """Reject a model that was trained on texts alone, and whose image encoder is as initialised.

    Its linear layers still have the biases that random weights come with: zeros.

    Raises:
        CapabilityError: The image encoder never learned anything.
    """
    words = set(loaded.settings.trained_for)
    specs = [spec for spec in TASKS.values() if spec.trained_for in words]
    if not specs or any("image" in need for spec in specs for need in spec.needs):
        return
    model = loaded.model
    biases = [m.bias for m in model.modules() if isinstance(m, nn.Linear) and m.bias is not None]
    trained = [bias.requires_grad for bias in biases]
    try:
        for bias in biases:
            bias.requires_grad_(True)
        with torch.enable_grad(), evaluation_mode(model):
            pixels = torch.zeros(1, 3, model.image_size, model.image_size, device=loaded.device)
            pooled = model.encode_image(pixels).pooled.sum()
            read = torch.autograd.grad(pooled, biases, allow_unused=True)
    finally:
        for bias, was in zip(biases, trained, strict=True):
            bias.requires_grad_(was)
    used = [bias for bias, gradient in zip(biases, read, strict=True) if gradient is not None]
    if used and not any(bool(bias.any()) for bias in used):
        raise CapabilityError(
            f"{loaded.folder} was trained for {' and '.join(loaded.settings.trained_for)} alone: "
            "its image encoder still has random weights, and a probe of it would say nothing; "
            "name the folder of a stage that reads images"
        )


def evaluate_probe(
    loaded: LoadedModel,
    train: LabelledImages,
    validation: LabelledImages,
    test: LabelledImages,
    *,
    method: Method = "linear",
    local_batch_size: int = 128,
    device: torch.device,
    progress: Progress | None = None,
) -> tuple[list[MetricValue], Probe]:
    """Fit a classifier on frozen features, and score it on a test split.

    The features are the image encoder's pooled states. C, or k, is chosen on the validation split.

    Returns:
        "probe" or "knn" with the mean over classes and each class's accuracy, and the classifier.

    Raises:
        ConfigError: No such method.
        DataError: Fewer than two classes, or a class of another split that training lacks.
    """
    check(method in METHODS, "method", method, f"be one of {', '.join(METHODS)}")
    names = distinct_classes(train.labels)
    numbers = {name: number for number, name in enumerate(names)}
    for split in (validation, test):
        unknown = sorted(set(split.labels) - numbers.keys())
        if unknown:
            known = ", ".join(names)
            raise DataError(f"training has no image of class {unknown[0]!r} (it has: {known})")
    model = loaded.model

    def features(split: LabelledImages) -> tuple[Tensor, Tensor, list[int]]:
        def encode(image: Tensor) -> Tensor:
            return loaded.model.encode_image(image).pooled  # type: ignore[no-any-return]

        states, index = encode_images(loaded, split, encode, local_batch_size, device, progress)
        return states, torch.tensor([numbers[split.labels[i]] for i in index]), index

    with evaluation_mode(model), torch.no_grad(), loaded.autocast():
        splits = [features(split) for split in (train, validation, test)]
    (x, y, _), (val_x, val_y, _), (test_x, _, index) = splits
    probe: Probe
    if method == "linear":
        probe = sweep_probe((x, y), (val_x, val_y), num_classes=len(names))
        name, words = "probe", f"Logistic regression, C = {probe.c:.3g}"
    else:
        probe = choose_nearest((x, y), (val_x, val_y), num_classes=len(names))
        name, words = "knn", f"Votes of the {probe.k} nearest neighbours by cosine, k"
    words += f" chosen on {len(val_x)} of {len(x) + len(val_x)} images with frozen features."
    best = [names[number] for number in probe.predict(test_x).tolist()]
    truth = dict(enumerate(test.labels))
    accuracy, per_class = ClassificationMetric(truth, name), MeanPerClassMetric(truth, name)
    for metric in (accuracy, per_class):
        metric.update(Predictions(index=index, scores={"label": best}))
    first, *rest = accuracy.compute()
    first = replace(first, protocol=f"{words} {first.protocol}")
    return [first, *per_class.compute(), *rest], probe


def encode_images(
    loaded: LoadedModel,
    data: LabelledImages,
    encode: Callable[[Tensor], Tensor],
    local_batch_size: int,
    device: torch.device,
    progress: Progress | None = None,
) -> tuple[Tensor, list[int]]:
    """Return (N, D) float32 states of the readable images on the CPU, and their positions.

    Raises:
        DataError: No image can be read, or too many cannot.
    """
    loader = image_loader(loaded, data.records, local_batch_size, data.log)
    parts: list[Tensor] = []
    index: list[int] = []
    for batch in loader:
        parts.append(encode(batch["image"].to(device)).float().cpu())
        index += batch["index"].tolist()
        if progress is not None:
            progress(len(index))
    if not parts:
        raise DataError(NOTHING_READ)
    return torch.cat(parts), index


def image_loader(
    loaded: LoadedModel, records: Sequence[Record], local_batch_size: int, log: SkipLog
) -> BatchLoader:
    """Return images alone, each record once, prepared as the model wants them."""
    return loaded.loader(records, ImageKeyCollator(), local_batch_size, log)
