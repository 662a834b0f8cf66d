"""Metrics that gather predictions batch by batch and give numbers with interval and protocol.

References arrive by the position of the sample in the dataset, which `Predictions.index` names.
An image that cannot be read is skipped, and the protocol says so.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Generic, Literal, Protocol, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from triptych.core.errors import CapabilityError, ConfigError, DataError
from triptych.core.outputs import MetricValue, Predictions
from triptych.evaluation import captions, java_metrics, ptb, retrieval
from triptych.evaluation.bootstrap import bootstrap_sums, interval_text, mean_of_means, mean_value
from triptych.evaluation.boxes import iou_xyxy, xywh_to_xyxy
from triptych.evaluation.vqa import OFFICIAL_NUM_ANSWERS, vqa_accuracy

Value = TypeVar("Value")
RECALLS = (1, 5, 10)
JavaMetric = Literal["meteor", "spice"]


class Metric(Protocol):
    """What the evaluator calls: `update` with each batch, then `compute` once."""

    @property
    def name(self) -> str:
        """Short name for messages."""
        ...

    def update(self, predictions: Predictions) -> None:
        """Take in the predictions of one batch."""
        ...

    def compute(self) -> list[MetricValue]:
        """Return the numbers over all batches."""
        ...


class ByIndex(Generic[Value]):
    """Predictions by dataset position, each at most once, in the order of the positions."""

    def __init__(self, metric: str, expected: int) -> None:
        self._metric = metric
        self._expected = expected
        self._values: dict[int, Value] = {}

    def add(self, index: Sequence[int], values: Sequence[Value]) -> None:
        """Store one value for each position.

        Raises:
            DataError: A position comes twice, or the lengths differ.
        """
        if len(index) != len(values):
            raise DataError(f"{self._metric}: {len(values)} predictions for {len(index)} samples")
        for position, value in zip(map(int, index), values, strict=True):
            if position in self._values:
                raise DataError(
                    f"{self._metric}: sample {position} was predicted twice; "
                    "go through the data once, without repeating samples"
                )
            self._values[position] = value

    def items(self) -> dict[int, Value]:
        """Return the predictions in the order of their positions.

        Raises:
            DataError: There is none.
        """
        if not self._values:
            raise DataError(f"{self._metric}: there is no prediction; is the split empty?")
        return dict(sorted(self._values.items()))

    def missing(self) -> str:
        """Return the sentence on samples without a prediction, empty if there is none."""
        count = self._expected - len(self._values)
        return f" {count} of {self._expected} samples skipped (unreadable)." if count > 0 else ""


def reference_of(references: Mapping[int, Value], position: int, metric: str) -> Value:
    """Return the reference of a sample, or raise DataError."""
    if position not in references:
        raise DataError(f"{metric}: sample {position} has no reference; evaluate labelled data")
    return references[position]


def _texts(predictions: Predictions, metric: str) -> Sequence[str]:
    """Return the generated texts of a batch, or say that the task gives none."""
    if predictions.texts is None:
        raise CapabilityError(f"{metric}: the task predicts no text; choose a task that generates")
    return predictions.texts


class VQAMetric:
    """VQA accuracy, for all questions ("vqa") and each question type ("vqa/<type>")."""

    name = "vqa"

    def __init__(
        self,
        references: Mapping[int, Sequence[str]],
        question_types: Mapping[int, str | None] | None = None,
        *,
        from_list: bool = False,
    ) -> None:
        """Take the human answers and, if the data has them, the question types, by position.

        Args:
            references: The human answers.
            question_types: The types of questions.
            from_list: Whether the model chooses from a closed list, for the protocol.
        """
        self._how = "answers from a closed list" if from_list else "generated answers"
        self._references = references
        self._types = question_types or {}
        self._answers: ByIndex[str] = ByIndex(self.name, len(references))

    def update(self, predictions: Predictions) -> None:
        """Take in the generated answers of one batch."""
        self._answers.add(predictions.index, _texts(predictions, self.name))

    def compute(self) -> list[MetricValue]:
        """Return the accuracy over all questions, then over each type in alphabetical order."""
        rule = (
            "VQA accuracy of the official script (min(1, matches / 3), each human answer excluded "
            "once)"
        )
        if any(len(answers) != OFFICIAL_NUM_ANSWERS for answers in self._references.values()):
            rule += (
                "; not all questions have its 10 answers: of n < 4 answers, n - 1 matches are "
                "enough, and of one answer one"
            )
        protocol = f"{rule}; {self._how}.{self._answers.missing()}"
        by_type: dict[str, list[float]] = {}
        scores = []
        for position, text in self._answers.items().items():
            expected = reference_of(self._references, position, self.name)
            scores.append(vqa_accuracy(text, expected))
            kind = self._types.get(position)
            if kind is not None:
                by_type.setdefault(kind, []).append(scores[-1])
        return [mean_value(self.name, scores, protocol)] + [
            mean_value(f"{self.name}/{kind}", values, f"{protocol} Type: {kind}.")
            for kind, values in sorted(by_type.items())
        ]


class CaptionMetric:
    """BLEU-1..4, ROUGE-L and CIDEr as "bleu_1" ... "bleu_4", "rouge_l", "cider".

    Where the data has domains, as NoCaps does, also those of each: "cider/in-domain".

    Args:
        references: The reference captions by position, as people wrote them.
        java: Out of "meteor" and "spice", which need Java: computed too.
        domains: The domains by position, as far as there are any.
    """

    name = "caption"

    def __init__(
        self,
        references: Mapping[int, Sequence[str]],
        java: Sequence[JavaMetric] = (),
        domains: Mapping[int, str | None] | None = None,
    ) -> None:
        self.java = tuple(java)
        self._references, self._domains = references, domains or {}
        self._captions: ByIndex[str] = ByIndex(self.name, len(references))

    def update(self, predictions: Predictions) -> None:
        """Take in the generated captions of one batch."""
        self._captions.add(predictions.index, _texts(predictions, self.name))

    def compute(self) -> list[MetricValue]:
        """Tokenise and score; document frequencies come from the references of what is scored.

        A domain is scored as if it were all, as NoCaps' server does.
        """
        generated = self._captions.items()
        candidates = {position: ptb.tokenize(text) for position, text in generated.items()}
        references = {
            position: [
                ptb.tokenize(text) for text in reference_of(self._references, position, self.name)
            ]
            for position in generated
        }
        values = self._values(list(candidates.values()), list(references.values()), "")
        for domain in sorted({d for p in generated if (d := self._domains.get(p)) is not None}):
            chosen = [position for position in generated if self._domains.get(position) == domain]
            values += [
                replace(value, name=f"{value.name}/{domain}")
                for value in self._values(
                    [candidates[position] for position in chosen],
                    [references[position] for position in chosen],
                    f" Domain: {domain}.",
                )
            ]
        return values

    def _values(
        self, candidates: Sequence[str], references: Sequence[Sequence[str]], domain: str
    ) -> list[MetricValue]:
        """Return the numbers of some captions."""
        told = f"PTB tokens.{self._captions.missing()}{domain}"
        tail = f"as pycocoevalcap 1.2, {told}"
        rouge = captions.compute_rouge_l(candidates, references)
        cider = captions.compute_cider(candidates, references)
        cider_text = f"CIDEr (document frequencies of these {len(candidates)} samples) {tail}"
        return [
            *_bleu_values(candidates, references, tail),
            mean_value("rouge_l", rouge.items, f"ROUGE-L {tail}"),
            mean_value("cider", cider.items, cider_text),
            *self._java_values(candidates, references, told),
        ]

    def _java_values(
        self, candidates: Sequence[str], references: Sequence[Sequence[str]], told: str
    ) -> list[MetricValue]:
        values = []
        tail = f"through Java, programs of pycocoevalcap, {told}"
        if "meteor" in self.java:
            counts = java_metrics.count_meteor(candidates, references)
            low, high = bootstrap_sums(counts, java_metrics.meteor_from_counts)
            values.append(
                MetricValue(
                    name="meteor",
                    value=float(java_metrics.meteor_from_counts(counts.sum(0)[None])[0]),
                    low=low,
                    high=high,
                    num_items=len(candidates),
                    protocol=f"Corpus METEOR 1.5 {tail} {interval_text()}",
                )
            )
        if "spice" in self.java:
            scores = java_metrics.compute_spice(candidates, references)
            values.append(mean_value("spice", scores, f"Mean SPICE 1.0 {tail}"))
        return values


def _bleu_values(
    candidates: Sequence[str], references: Sequence[Sequence[str]], tail: str
) -> list[MetricValue]:
    """Return corpus BLEU-1..4; the bootstrap sums the counts of resampled captions."""
    counts = captions.count_bleu(candidates, references)
    corpus = captions.bleu_from_counts(counts.sum(0))
    values = []
    for n in range(captions.MAX_N):
        low, high = bootstrap_sums(
            counts,
            lambda sums, n=n: captions.bleu_from_counts(sums)[:, n],  # type: ignore[misc]
        )
        protocol = f"Corpus BLEU-{n + 1} {tail} {interval_text()}"
        values.append(
            MetricValue(
                name=f"bleu_{n + 1}",
                value=float(corpus[n]),
                low=low,
                high=high,
                num_items=len(candidates),
                protocol=protocol,
            )
        )
    return values


def add_java_metrics(metrics: Sequence[Metric], names: Sequence[JavaMetric]) -> None:
    """Let the captions among metrics be scored by METEOR or SPICE too.

    Raises:
        CapabilityError: What they need is missing.
        ConfigError: There are no captions among the metrics.
    """
    if not names:
        return
    scored = [metric for metric in metrics if isinstance(metric, CaptionMetric)]
    if not scored:
        raise ConfigError(f"java_metrics = {' '.join(names)}: only captions are scored by them")
    java_metrics.check_java(names)
    for metric in scored:
        metric.java = tuple(names)


def usable_java_metrics() -> tuple[JavaMetric, ...]:
    """Return those of METEOR and SPICE that can be computed here."""
    usable: list[JavaMetric] = []
    for name in get_args(JavaMetric):
        with suppress(CapabilityError):
            java_metrics.check_java((name,))
            usable.append(name)
    return tuple(usable)


class BoxMetric:
    """Accuracy at IoU 0.5 as "grounding" and the mean IoU as "grounding_iou"."""

    name = "grounding"

    def __init__(
        self,
        boxes_xywh: Mapping[int, tuple[float, float, float, float]],
        threshold: float = 0.5,
    ) -> None:
        """Take the right boxes, in pixels of the original image, by position."""
        self._references = boxes_xywh
        self._threshold = threshold
        self._boxes: ByIndex[Tensor] = ByIndex(self.name, len(boxes_xywh))

    def update(self, predictions: Predictions) -> None:
        """Take in the predicted boxes of one batch."""
        if predictions.boxes_xyxy is None:
            raise CapabilityError("grounding: the task predicts no boxes; choose a grounding task")
        self._boxes.add(predictions.index, list(predictions.boxes_xyxy.detach().double().cpu()))

    def compute(self) -> list[MetricValue]:
        """Return the accuracy and the mean overlap."""
        boxes = self._boxes.items()
        target = torch.tensor(
            [reference_of(self._references, position, self.name) for position in boxes],
            dtype=torch.float64,
        )
        overlap = iou_xyxy(torch.stack(list(boxes.values())), xywh_to_xyxy(target)).numpy()
        missing = self._boxes.missing()
        hits = (overlap >= self._threshold).astype(np.float64)
        protocol = f"Share of boxes with IoU >= {self._threshold:g}, one box a phrase.{missing}"
        return [
            mean_value(self.name, hits, protocol),
            mean_value(f"{self.name}_iou", overlap, f"Mean IoU, one box a phrase.{missing}"),
        ]


class ClassificationMetric:
    """Share of labels that are right, for all items and for each class ("<name>/<class>").

    Args:
        labels: The right labels by position.
        name: Key of the number.
        with_majority: Whether to add what the most frequent label of the same items would score,
            as "<name>_majority": the best constant guess.
    """

    def __init__(
        self,
        labels: Mapping[int, Hashable],
        name: str = "accuracy",
        *,
        with_majority: bool = False,
    ) -> None:
        self.name, self._with_majority = name, with_majority
        self._references = labels
        self._labels: ByIndex[Hashable] = ByIndex(name, len(labels))

    def update(self, predictions: Predictions) -> None:
        """Take in `predictions.scores["label"]`, one label a sample."""
        if "label" not in predictions.scores:
            raise CapabilityError(f"{self.name}: the task predicts no label; choose a classifier")
        labels = predictions.scores["label"]
        values = labels.tolist() if isinstance(labels, Tensor) else list(labels)
        self._labels.add(predictions.index, values)

    def compute(self) -> list[MetricValue]:
        """Return the accuracy over all items, then over each class."""
        by_class: dict[str, list[float]] = {}
        hits = []
        for position, guess in self._labels.items().items():
            right = reference_of(self._references, position, self.name)
            hits.append(float(guess == right))
            by_class.setdefault(str(right), []).append(hits[-1])
        protocol = f"Share of labels that are right.{self._labels.missing()}"
        values = [mean_value(self.name, hits, protocol)]
        if self._with_majority:
            values.append(self._majority(by_class))
        return values + [
            mean_value(f"{self.name}/{label}", values, f"{protocol} Class: {label}.")
            for label, values in sorted(by_class.items())
        ]

    def _majority(self, by_class: Mapping[str, Sequence[float]]) -> MetricValue:
        """Score the most frequent label of the items; of several the first by alphabet."""
        common = max(sorted(by_class), key=lambda label: len(by_class[label]))
        hits = [float(label == common) for label, items in by_class.items() for _ in items]
        protocol = f"Share of the most frequent label of these samples, {common}: a blind guess."
        return mean_value(f"{self.name}_majority", hits, protocol + self._labels.missing())


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondStage:
    """How retrieval re-ranks its first candidates.

    Attributes:
        score_pairs: From (n,) dataset positions of images and (n,) of captions to (n,) scores of
            image-text matching; higher is a better match.
        topk: Candidates of each query that are scored (ALBEF: 128 or 256).
        combine: "itm" = the new score alone, "itm+itc" = plus the similarity.
        pairs_at_once: Pairs in one call.
    """

    score_pairs: Callable[[Tensor, Tensor], Tensor]
    topk: int
    combine: retrieval.Combine = "itm"
    pairs_at_once: int = 256


class RetrievalMetric:
    """Recall at 1, 5 and 10 both ways ("i2t_r1", "t2i_r1", ...; "..._itm" for a second stage).

    "r_mean" is the mean of the six, by which papers choose models.

    Each distinct image is one candidate (its first embedding); each sample's caption is another.
    """

    name = "retrieval"

    def __init__(
        self,
        image_keys: Sequence[Hashable],
        caption_keys: Sequence[Hashable],
        second_stage: SecondStage | None = None,
        folds: int = 1,
    ) -> None:
        """Take the keys of every sample's image and caption; equal keys are the same thing.

        Args:
            image_keys: One a sample.
            caption_keys: One a sample.
            second_stage: Re-ranks the first candidates.
            folds: Parts of equally many images, in their order, within which queries look for
                candidates; recall is that of all queries together.

        Raises:
            DataError: The numbers of keys differ.
        """
        if len(image_keys) != len(caption_keys):
            raise DataError(f"{len(image_keys)} image keys but {len(caption_keys)} caption keys")
        self._image_keys = image_keys
        self._caption_keys = caption_keys
        self._second_stage = second_stage
        self._folds = folds
        self._embeddings: ByIndex[tuple[Tensor, Tensor]] = ByIndex(self.name, len(image_keys))

    def update(self, predictions: Predictions) -> None:
        """Take in the "image" and "text" embeddings of one batch."""
        missing = {"image", "text"} - predictions.embeddings.keys()
        if missing:
            raise CapabilityError(
                f"retrieval: the task gives no {' and '.join(sorted(missing))} embeddings; "
                "choose a retrieval task"
            )
        image = predictions.embeddings["image"].detach().float()
        text = predictions.embeddings["text"].detach().float()
        self._embeddings.add(predictions.index, list(zip(image, text, strict=True)))

    def compute(self) -> list[MetricValue]:
        """Return the recalls of the first stage, then of the second."""
        found = self._embeddings.items()
        keys = [self._image_keys[position] for position in found]
        parts = [
            [list(found)[number] for number in part]
            for part in retrieval.fold_parts(keys, self._folds)
        ]
        ranks = [self._ranks(found, positions) for positions in parts]
        stage = self._second_stage
        return retrieval_values(
            [torch.cat(column) for column in zip(*ranks, strict=True)],
            num_images=len(set(keys)),
            num_captions=len(found),
            folds=len(parts),
            missing=self._embeddings.missing(),
            second=None if stage is None else (stage.topk, stage.combine),
        )

    def _ranks(
        self, embeddings: Mapping[int, tuple[Tensor, Tensor]], positions: list[int]
    ) -> list[Tensor]:
        """Return ranks of images and of captions among some samples; then of the second stage."""
        first, captions_of, images_of = retrieval.relevance_from_keys(
            [self._image_keys[position] for position in positions],
            [self._caption_keys[position] for position in positions],
        )
        text = torch.stack([embeddings[position][1] for position in positions])
        image = torch.stack([embeddings[positions[record]][0] for record in first])
        ranks = [
            retrieval.compute_embedding_ranks(image, text, captions_of),
            retrieval.compute_embedding_ranks(text, image, images_of),
        ]
        stage = self._second_stage
        if stage is None:
            return ranks
        image_at = torch.tensor([positions[record] for record in first])
        text_at = torch.tensor(positions)
        ranked = retrieval.rerank(
            retrieval.shortlist(image, text, stage.topk),
            retrieval.shortlist(text, image, stage.topk),
            lambda shown, caption: stage.score_pairs(image_at[shown], text_at[caption]),
            stage.combine,
            caption_numbers=retrieval.first_of_equal([self._caption_keys[p] for p in positions]),
            pairs_at_once=stage.pairs_at_once,
        )
        for listed, relevance in zip(ranked, (captions_of, images_of), strict=True):
            ranks.append(retrieval.compute_shortlist_ranks(listed, relevance))
        return ranks


def retrieval_values(
    ranks: Sequence[Tensor],
    *,
    num_images: int,
    num_captions: int,
    folds: int,
    missing: str,
    second: tuple[int, str] | None,
    first: str = "similarity of embeddings alone (ITC)",
) -> list[MetricValue]:
    """Return the recalls of ranks.

    Args:
        ranks: (Q,) of images and of captions by similarity; then of the second stage, if any.
        num_images: Distinct images.
        num_captions: Captions.
        folds: Parts that were searched apart.
        missing: A sentence on what could not be read; empty for nothing.
        second: Candidates that the second stage ranks, and by what.
        first: What the first stage ranks by, in words.
    """
    size = (
        f"{num_images} images, {num_captions} captions, duplicates of either count as right "
        "(images by id or path, captions by text)."
    )
    if folds > 1:
        size += f" Mean over {folds} folds of the images."
    size += missing
    values = _recalls("", ranks[0], ranks[1], f"{first}, {size}")
    if second is not None:
        protocol = f"first {second[0]} by ITC, ranked by {second[1].upper()}, {size}"
        values += _recalls("_itm", ranks[2], ranks[3], protocol)
    return values


def _recalls(suffix: str, i2t: Tensor, t2i: Tensor, protocol: str) -> list[MetricValue]:
    """Return recall at each k in both directions, and the mean of all."""
    directions = (("i2t", "Image to text", i2t), ("t2i", "Text to image", t2i))
    values = [
        mean_value(
            f"{key}_r{k}{suffix}",
            retrieval.hits_at(ranks, k).numpy(),
            f"{words} recall at {k}: {protocol}",
        )
        for key, words, ranks in directions
        for k in RECALLS
    ]
    hits = [torch.stack([retrieval.hits_at(r, k) for k in RECALLS]).mean(0) for r in (i2t, t2i)]
    words = f"Mean of the {2 * len(RECALLS)} recalls: {protocol}"
    return [*values, mean_of_means(f"r_mean{suffix}", [hit.numpy() for hit in hits], words)]
