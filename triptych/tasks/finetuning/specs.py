"""What the fine-tuning tasks say about themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from triptych.core.errors import DataError
from triptych.data.collate import (
    CaptioningCollator,
    GroundingCollator,
    ImageKeyCollator,
    RetrievalCollator,
    StatementCollator,
    VQACollator,
)
from triptych.data.collate.base import image_key
from triptych.data.collate.classification import (
    AnswerClassCollator,
    ImageTextClassCollator,
    TextClassCollator,
)
from triptych.data.labels import answer_vocabulary, class_names
from triptych.data.records import Record
from triptych.evaluation.label_metrics import AUROCMetric, BinaryMetric, CorrelationMetric
from triptych.evaluation.metrics import (
    BoxMetric,
    CaptionMetric,
    ClassificationMetric,
    Metric,
    VQAMetric,
)
from triptych.evaluation.vqa import normalize_answer
from triptych.models.base import TwoImageReader
from triptych.models.mplug.model import MPLUG
from triptych.tasks.finetuning.captioning import Captioning, CaptioningConfig
from triptych.tasks.finetuning.grounding import Grounding, GroundingConfig
from triptych.tasks.finetuning.image_text_classification import (
    AnswerClassification,
    AnswerClassificationConfig,
    ImageTextClassification,
    ImageTextClassificationConfig,
)
from triptych.tasks.finetuning.nlvr2 import NLVR2, TRUTH, NLVR2Config
from triptych.tasks.finetuning.retrieval import (
    Retrieval,
    RetrievalConfig,
    VLMoRetrievalConfig,
)
from triptych.tasks.finetuning.scst import SCST, CiderReward, SCSTConfig
from triptych.tasks.finetuning.text_classification import (
    TextClassification,
    TextClassificationConfig,
)
from triptych.tasks.finetuning.vqa import VQA, VQAConfig
from triptych.tasks.spec import (
    CollatorInputs,
    Evaluation,
    TaskRecipe,
    TaskSpec,
    TrainedModels,
)
from triptych.text import Tokenizer

GENERATORS = TrainedModels(capabilities=("decode",))


def caption_references(
    records: Sequence[Record], all_records: Sequence[Record]
) -> dict[int, list[str]]:
    """Return all captions of each record's image, by position."""
    by_image: dict[int, list[str]] = {}
    for record in all_records:
        if record.image is not None and record.caption:
            by_image.setdefault(image_key(record), []).append(record.caption)
    return {i: by_image[image_key(record)] for i, record in enumerate(records)}


def _caption_metrics(
    config: CaptioningConfig, records: Sequence[Record], all_records: Sequence[Record]
) -> list[Metric]:
    del config
    return [CaptionMetric(caption_references(records, all_records))]


def _captions(config: CaptioningConfig, inputs: CollatorInputs) -> CaptioningCollator:
    del config
    return CaptioningCollator(
        inputs.tokenizer, max_text_tokens=inputs.captions.max_text_tokens, train=inputs.train
    )


CAPTIONING_SPEC = TaskSpec(
    config=CaptioningConfig,
    trained_for="captioning",
    build=lambda config, model, tokenizer, _: Captioning(model, config, tokenizer),
    collator=_captions,
    needs=("caption",),
    models=GENERATORS,
    recipes=(TaskRecipe("mplug.caption", "mplug"),),
    serves=("caption",),
    evaluations=(Evaluation("caption", "caption", _caption_metrics, one_per_image=True),),
)


def build_reward(config: SCSTConfig, records: Iterable[Record]) -> CiderReward:
    """Return the reward of captions: CIDEr-D with the captions and frequencies of the records.

    Raises:
        DataError: There are captions of fewer than two images.
    """
    captions: dict[int, list[str]] = {}
    for record in records:
        if record.image is not None and record.caption:
            captions.setdefault(image_key(record), []).append(record.caption)
    return CiderReward(captions, reward_end=config.reward_end)


def _build_scst(
    config: SCSTConfig, model: MPLUG, tokenizer: Tokenizer, records: Iterable[Record]
) -> SCST:
    return SCST(model, config, tokenizer, build_reward(config, records))


def _image_keys(config: SCSTConfig, inputs: CollatorInputs) -> ImageKeyCollator:
    del config, inputs
    return ImageKeyCollator()


SCST_SPEC = TaskSpec(
    config=SCSTConfig,
    trained_for="captioning",
    build=_build_scst,
    collator=_image_keys,
    needs=("caption",),
    models=GENERATORS,
    recipes=(TaskRecipe("mplug.scst", "mplug"),),
    serves=("caption",),
    also_scored=("caption",),
    stored=lambda config: config.captioning,
)


def _retrieval_collator(config: object, inputs: CollatorInputs) -> RetrievalCollator:
    del config
    captions = inputs.captions
    return RetrievalCollator(
        inputs.tokenizer, max_text_tokens=captions.max_text_tokens, max_words=captions.max_words
    )


SEARCH: Evaluation[Any] = Evaluation("retrieval", "caption", procedure="search")
NAMES: Evaluation[Any] = Evaluation("zero_shot", "label", procedure="names")

RETRIEVAL_SPEC = TaskSpec(
    config=RetrievalConfig,
    trained_for="retrieval",
    build=lambda config, model, *_: Retrieval(model, config),
    collator=_retrieval_collator,
    needs=("caption",),
    models=TrainedModels(families=("mplug",)),
    recipes=(TaskRecipe("mplug.retrieval", "mplug"),),
    serves=("match", "embed", "classify"),
    evaluations=(SEARCH, NAMES),
    optional_objectives=frozenset({"itm"}),
)

VLMO_RETRIEVAL_SPEC = TaskSpec(
    config=VLMoRetrievalConfig,
    trained_for="retrieval",
    build=lambda config, model, *_: Retrieval(model, config),
    collator=_retrieval_collator,
    needs=("caption",),
    models=TrainedModels(families=("vlmo",)),
    recipes=(TaskRecipe("vlmo.retrieval", "vlmo"),),
    serves=("match", "embed", "classify"),
    evaluations=(SEARCH, NAMES),
)


def _vqa_metrics(records: Sequence[Record], *, from_list: bool) -> list[Metric]:
    answers = {i: r.answers for i, r in enumerate(records)}
    types = {i: r.question_type for i, r in enumerate(records)}
    return [VQAMetric(answers, types, from_list=from_list)]


def _vqa_collator(config: VQAConfig, inputs: CollatorInputs) -> VQACollator:
    return VQACollator(
        inputs.tokenizer,
        max_question_tokens=inputs.lengths.question,
        max_answer_tokens=inputs.lengths.answer,
        append_words=config.append_words,
        train=inputs.train,
    )


VQA_SPEC = TaskSpec(
    config=VQAConfig,
    trained_for="vqa",
    build=lambda config, model, tokenizer, _: VQA(model, config, tokenizer),
    collator=_vqa_collator,
    needs=("question", "answers"),
    models=GENERATORS,
    recipes=(TaskRecipe("mplug.vqa", "mplug", default=True),),
    serves=("answer",),
    evaluations=(
        Evaluation("vqa", "answers", lambda _, records, __: _vqa_metrics(records, from_list=False)),
    ),
)


def _complete_answers(
    config: AnswerClassificationConfig, records: Sequence[Record]
) -> AnswerClassificationConfig:
    if config.answers:
        return config
    answers = answer_vocabulary(
        records,
        min_count=config.min_answer_count,
        max_answers=config.max_answers,
        normalise=normalize_answer,
    )
    return replace(config, answers=answers)


def _answer_collator(
    config: AnswerClassificationConfig, inputs: CollatorInputs
) -> AnswerClassCollator:
    return AnswerClassCollator(
        inputs.tokenizer,
        config.answers,
        normalise=normalize_answer,
        max_question_tokens=config.max_text_tokens,
        train=inputs.train,
    )


ANSWERS_SPEC = TaskSpec(
    config=AnswerClassificationConfig,
    trained_for="answer_classification",
    build=lambda config, model, *_: AnswerClassification(model, config),
    collator=_answer_collator,
    needs=("question", "answers"),
    recipes=(
        TaskRecipe("vlmo.vqa", "vlmo"),
        TaskRecipe("flava.vqa", "flava"),
        TaskRecipe("classify.answers"),
    ),
    serves=("answer",),
    evaluations=(
        Evaluation("vqa", "answers", lambda _, records, __: _vqa_metrics(records, from_list=True)),
    ),
    has_classifier=True,
    complete=_complete_answers,
)


def _build_grounding(
    config: GroundingConfig, model: MPLUG, tokenizer: Tokenizer, records: Iterable[Record]
) -> Grounding:
    del records
    first = tokenizer.unused_id(config.first_bin_unused)
    tokenizer.unused_id(config.first_bin_unused + config.num_bins - 1)
    start = tokenizer.unused_id(config.start_unused)
    return Grounding(model, config, start_id=start, first_bin_id=first)


def _grounding_collator(config: GroundingConfig, inputs: CollatorInputs) -> GroundingCollator:
    del config
    return GroundingCollator(
        inputs.tokenizer, max_text_tokens=inputs.lengths.phrase, train=inputs.train
    )


def _box_metrics(
    config: GroundingConfig, records: Sequence[Record], all_records: Sequence[Record]
) -> list[Metric]:
    del config, all_records
    return [BoxMetric({i: r.box for i, r in enumerate(records) if r.box is not None})]


GROUNDING_SPEC = TaskSpec(
    config=GroundingConfig,
    trained_for="grounding",
    build=_build_grounding,
    collator=_grounding_collator,
    needs=("phrase", "box"),
    models=GENERATORS,
    recipes=(TaskRecipe("mplug.grounding", "mplug", default=True),),
    serves=("ground",),
    evaluations=(Evaluation("grounding", "box", _box_metrics),),
)


def _statement_collator(config: NLVR2Config, inputs: CollatorInputs) -> StatementCollator:
    return StatementCollator(
        inputs.tokenizer,
        max_text_tokens=config.max_text_tokens,
        swap_probability=config.swap_probability,
        train=inputs.train,
    )


def _truth_metrics(
    config: NLVR2Config, records: Sequence[Record], all_records: Sequence[Record]
) -> list[Metric]:
    del config, all_records
    truth = {i: TRUTH[bool(r.label)] for i, r in enumerate(records)}
    return [ClassificationMetric(truth, "nlvr2", with_majority=True)]


NLVR2_SPEC = TaskSpec(
    config=NLVR2Config,
    trained_for="nlvr2",
    build=lambda config, model, *_: NLVR2(model, config),
    collator=_statement_collator,
    needs=("statement", "label"),
    models=TrainedModels(contract=TwoImageReader),
    recipes=(
        TaskRecipe("mplug.nlvr2", "mplug", default=True),
        TaskRecipe("vlmo.nlvr2", "vlmo"),
    ),
    serves=("judge",),
    evaluations=(Evaluation("nlvr2", "label", _truth_metrics, num_images=2),),
    has_classifier=True,
)


def _class_metrics(labels: Sequence[str], records: Sequence[Record]) -> list[Metric]:
    """Return what a classifier is scored by.

    Accuracy; of two classes also AUROC, F1 and Matthews' correlation, the second being the positive
    one.
    """
    truth = {i: str(record.label) for i, record in enumerate(records)}
    metrics: list[Metric] = [ClassificationMetric(truth)]
    if len(labels) == 2:
        positive = labels[1]
        if len(set(truth.values())) > 1:  # a small part of the data may hold one class alone
            metrics.append(AUROCMetric(truth, positive=positive))
        metrics += [
            BinaryMetric(truth, positive=positive, kind="f1"),
            BinaryMetric(truth, positive=positive, kind="matthews"),
        ]
    return metrics


def _entailment_metrics(
    config: ImageTextClassificationConfig,
    records: Sequence[Record],
    all_records: Sequence[Record],
) -> list[Metric]:
    del config, all_records
    relations = {i: str(r.label) for i, r in enumerate(records)}
    return [ClassificationMetric(relations, "snli_ve", with_majority=True)]


def _pair_metrics(
    config: ImageTextClassificationConfig,
    records: Sequence[Record],
    all_records: Sequence[Record],
) -> list[Metric]:
    del all_records
    return _class_metrics(config.labels, records)


def _complete_pairs(
    config: ImageTextClassificationConfig, records: Sequence[Record]
) -> ImageTextClassificationConfig:
    return config if config.labels else replace(config, labels=class_names(records))


def _pair_collator(
    config: ImageTextClassificationConfig, inputs: CollatorInputs
) -> ImageTextClassCollator:
    return ImageTextClassCollator(
        inputs.tokenizer,
        config.labels,
        text_field=config.text_field,
        with_premise=config.with_premise,
        max_text_tokens=config.max_text_tokens,
        train=inputs.train,
    )


_ENTAILMENT = ("entail", "snli_ve")
_LABELS = ("label", "classification")

PAIRS_SPEC = TaskSpec(
    config=ImageTextClassificationConfig,
    trained_for="image_text_classification",
    build=lambda config, model, *_: ImageTextClassification(model, config),
    collator=_pair_collator,
    needs=("image", "hypothesis", "label"),
    recipes=(
        TaskRecipe("mplug.snli_ve", "mplug", teaches=_ENTAILMENT, default=True),
        TaskRecipe("vlmo.snli_ve", "vlmo", teaches=_ENTAILMENT),
        TaskRecipe("flava.snli_ve", "flava", teaches=_ENTAILMENT),
        TaskRecipe(
            "flava.hateful_memes",
            "flava",
            needs=("image", "text", "label"),
            teaches=(),
            default=True,
        ),
        TaskRecipe("classify.pairs", needs=("image", "text|hypothesis", "label"), teaches=_LABELS),
    ),
    serves=("entail", "label"),
    evaluations=(
        Evaluation("snli_ve", "label", _entailment_metrics),
        Evaluation("classification", "label", _pair_metrics),
    ),
    has_classifier=True,
    complete=_complete_pairs,
)


def _text_metrics(
    config: TextClassificationConfig, records: Sequence[Record], all_records: Sequence[Record]
) -> list[Metric]:
    """Return what a classifier of texts is scored by; of numbers the correlations alone.

    Raises:
        DataError: A label is no number where numbers are predicted.
    """
    del all_records
    if config.target != "number":
        return _class_metrics(config.labels, records)
    values = {i: r.label for i, r in enumerate(records) if isinstance(r.label, (int, float))}
    if len(values) < len(records):
        raise DataError("the model predicts numbers, and a label is none")
    return [CorrelationMetric({i: float(value) for i, value in values.items()})]


def _complete_texts(
    config: TextClassificationConfig, records: Sequence[Record]
) -> TextClassificationConfig:
    if config.labels or config.target == "number":
        return config
    if any(isinstance(record.label, float) for record in records):
        return replace(config, target="number")
    return replace(config, labels=class_names(records))


def _text_collator(config: TextClassificationConfig, inputs: CollatorInputs) -> TextClassCollator:
    return TextClassCollator(
        inputs.tokenizer,
        None if config.target == "number" else config.labels,
        max_text_tokens=config.max_text_tokens,
        train=inputs.train,
    )


TEXTS_SPEC = TaskSpec(
    config=TextClassificationConfig,
    trained_for="text_classification",
    build=lambda config, model, *_: TextClassification(model, config),
    collator=_text_collator,
    needs=("text|hypothesis", "label"),
    recipes=(
        TaskRecipe("classify.texts", default=True),
        TaskRecipe("flava.glue", "flava", teaches=("label_texts",)),
    ),
    serves=("label_texts",),
    evaluations=(Evaluation("classification", "label", _text_metrics, num_images=0),),
    has_classifier=True,
    complete=_complete_texts,
)
