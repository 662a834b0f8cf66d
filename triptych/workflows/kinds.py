"""For each kind of task config: its Task, its collator, and what its model can be asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from triptych.core.errors import ConfigError
from triptych.data.codes import check_stored_codes
from triptych.data.collate import (
    AnyCollator,
    CaptioningCollator,
    GroundingCollator,
    ImageKeyCollator,
    PretrainingCollator,
    PretrainingTextConfig,
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
from triptych.data.collate.crops import MultiCropCollator, MultiCropConfig
from triptych.data.collate.flava import FLAVAPairCollator
from triptych.data.collate.image import ImageCollator, MaskedImageCollator
from triptych.data.collate.masked_text import MaskedTextCollator
from triptych.data.labels import answer_vocabulary, class_names
from triptych.data.records import Record
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.evaluation.vqa import normalize_answer
from triptych.models.base import TwoImageReader
from triptych.models.dvae.config import codebook_image_size
from triptych.models.dvae.model import DVAE
from triptych.models.families import FAMILIES, family_of
from triptych.recipes.config import TaskConfig, TextLengths
from triptych.tasks.finetuning.captioning import Captioning, CaptioningConfig
from triptych.tasks.finetuning.grounding import Grounding, GroundingConfig
from triptych.tasks.finetuning.image_text_classification import (
    AnswerClassification,
    AnswerClassificationConfig,
    ImageTextClassification,
    ImageTextClassificationConfig,
)
from triptych.tasks.finetuning.nlvr2 import NLVR2, NLVR2Config
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
from triptych.tasks.pretraining.dino import DINO, DINOConfig
from triptych.tasks.pretraining.dvae import DVAETraining, DVAETrainingConfig
from triptych.tasks.pretraining.flava import FLAVAPretraining, FLAVAPretrainingConfig
from triptych.tasks.pretraining.flava_stages import (
    FLAVAImage,
    FLAVAImageConfig,
    FLAVAText,
    FLAVATextConfig,
)
from triptych.tasks.pretraining.mplug import MPLUGPretraining, MPLUGPretrainingConfig
from triptych.tasks.pretraining.vlmo import VLMoPretraining, VLMoPretrainingConfig
from triptych.tasks.pretraining.vlmo_stages import (
    VLMoLanguage,
    VLMoLanguageConfig,
    VLMoVision,
    VLMoVisionConfig,
)
from triptych.text import Tokenizer
from triptych.train.task import Task
from triptych.workflows import image_tokenizer

TRAINED_FOR = {
    MPLUGPretrainingConfig: "pretraining",
    CaptioningConfig: "captioning",
    SCSTConfig: "captioning",
    RetrievalConfig: "retrieval",
    VQAConfig: "vqa",
    GroundingConfig: "grounding",
    NLVR2Config: "nlvr2",
    AnswerClassificationConfig: "answer_classification",
    ImageTextClassificationConfig: "image_text_classification",
    TextClassificationConfig: "text_classification",
    VLMoVisionConfig: "vision",
    VLMoLanguageConfig: "language",
    VLMoPretrainingConfig: "pretraining",
    VLMoRetrievalConfig: "retrieval",
    FLAVAImageConfig: "vision",
    FLAVATextConfig: "language",
    FLAVAPretrainingConfig: "pretraining",
    DVAETrainingConfig: image_tokenizer.TRAINED_FOR,
    DINOConfig: "vision",
}
"""The word in a model folder's `trained_for`, by task config."""

PRETRAINING = (
    MPLUGPretrainingConfig,
    VLMoVisionConfig,
    VLMoLanguageConfig,
    VLMoPretrainingConfig,
    FLAVAImageConfig,
    FLAVATextConfig,
    FLAVAPretrainingConfig,
    DVAETrainingConfig,
    DINOConfig,
)
"""The task configs that begin from fresh weights, or from an earlier stage; others fine-tune."""


OF_FAMILY = {
    "mplug": (
        MPLUGPretrainingConfig,
        CaptioningConfig,
        SCSTConfig,
        RetrievalConfig,
        VQAConfig,
        GroundingConfig,
    ),
    "vlmo": (
        VLMoVisionConfig,
        VLMoLanguageConfig,
        VLMoPretrainingConfig,
        VLMoRetrievalConfig,
    ),
    "flava": (FLAVAImageConfig, FLAVATextConfig, FLAVAPretrainingConfig),
}
"""The task configs that only models of one family can train; the others take any that reads what
they need."""

IMAGES_ALONE = (DINOConfig, FLAVAImageConfig, VLMoVisionConfig)
"""Tasks that read no text, and can do without a vocabulary."""


@dataclass(frozen=True, slots=True)
class PatchView:
    """What hiding patches, or taking several crops, must know.

    Attributes:
        image: How images are prepared.
        patch_size: Side of a patch of the model, in pixels.
        crops: The crops of each image.
    """

    image: ImageTransformConfig
    patch_size: int
    crops: MultiCropConfig = field(default_factory=MultiCropConfig)


def stored_task(config: TaskConfig) -> TaskConfig:
    """Return the settings that a model folder keeps: those that its use needs."""
    return config.captioning if isinstance(config, SCSTConfig) else config


def complete_task(config: TaskConfig, records: Sequence[Record]) -> TaskConfig:
    """Return a task's settings with the classes or answers of the training data filled in.

    Raises:
        DataError: The data has fewer than two classes, or no answer is frequent enough.
    """
    match config:
        case AnswerClassificationConfig(answers=()):
            answers = answer_vocabulary(
                records,
                min_count=config.min_answer_count,
                max_answers=config.max_answers,
                normalise=normalize_answer,
            )
            return replace(config, answers=answers)
        case TextClassificationConfig(labels=(), target="class") if _has_values(records):
            return replace(config, target="number")
        case (
            ImageTextClassificationConfig(labels=())
            | TextClassificationConfig(labels=(), target="class")
        ):
            return replace(config, labels=class_names(records))
        case _:
            return config


def _has_values(records: Sequence[Record]) -> bool:
    return any(isinstance(record.label, float) for record in records)


def check_family(task: TaskConfig, model: Any, recipe: str, named: str) -> None:
    """Raise where a task cannot train the models of this family.

    Args:
        task: The task's settings.
        model: The model that it was given.
        recipe: The recipe, for the message.
        named: Where the model came from, for the message.

    Raises:
        ConfigError: The model is of another family.
    """
    if isinstance(task, NLVR2Config) and not isinstance(model, TwoImageReader):
        raise ConfigError(
            f"{recipe} trains mPLUG and VLMo models, and {named} is of "
            f"{family_of(model.config).title}: name a model that can read two images"
        )
    kind = next((kind for kind, tasks in OF_FAMILY.items() if isinstance(task, tasks)), None)
    found = family_of(model.config)
    if kind is None or found is FAMILIES[kind]:
        return
    title = FAMILIES[kind].title
    raise ConfigError(
        f"{recipe} trains {title} models, and {named} is of {found.title}: name a model of {title} "
        "there, or take another recipe (`triptych train --help` lists them)"
    )


def build_task(
    config: TaskConfig, model: Any, tokenizer: Tokenizer, records: Iterable[Record] = ()
) -> Task:
    """Bind a model to a task.

    Args:
        config: The task's settings.
        model: What it trains or uses.
        tokenizer: The model's words.
        records: The training data; SCST takes its rewards from their captions.

    Raises:
        DataError: The tokenizer has too few unused tokens for grounding, or SCST has no captions.
    """
    match config:
        case MPLUGPretrainingConfig():
            return MPLUGPretraining(model, config)
        case RetrievalConfig() | VLMoRetrievalConfig():
            return Retrieval(model, config)
        case CaptioningConfig():
            return Captioning(model, config, tokenizer)
        case SCSTConfig():
            return SCST(model, config, tokenizer, build_reward(config, records))
        case VQAConfig():
            return VQA(model, config, tokenizer)
        case GroundingConfig():
            first = tokenizer.unused_id(config.first_bin_unused)
            tokenizer.unused_id(config.first_bin_unused + config.num_bins - 1)
            start = tokenizer.unused_id(config.start_unused)
            return Grounding(model, config, start_id=start, first_bin_id=first)
        case NLVR2Config():
            return NLVR2(model, config)
        case AnswerClassificationConfig():
            return AnswerClassification(model, config)
        case ImageTextClassificationConfig():
            return ImageTextClassification(model, config)
        case TextClassificationConfig():
            return TextClassification(model, config)
        case VLMoVisionConfig():
            size = codebook_image_size(model.config.image_size, model.config.patch_size)
            named = config.image_tokenizer
            return VLMoVision(model, config, image_tokenizer.load(named, image_size=size))
        case VLMoLanguageConfig():
            return VLMoLanguage(model, config)
        case VLMoPretrainingConfig():
            return VLMoPretraining(model, config)
        case FLAVAImageConfig():
            return FLAVAImage(model, config, _tokenizer_if_named(config.image_tokenizer))
        case FLAVATextConfig():
            return FLAVAText(model, config)
        case FLAVAPretrainingConfig():
            return FLAVAPretraining(model, config, _tokenizer_if_named(config.image_tokenizer))
        case DVAETrainingConfig():
            return DVAETraining(model, config)
        case DINOConfig():
            return DINO(model, config)


def check_task_data(config: TaskConfig, model: Any, records: Iterable[Record]) -> None:
    """Raise where the data lacks what a task reads of it: the right codes, if they are stored.

    Raises:
        DataError: An image has no stored codes, or other ones than the model's codebook gives.
    """
    if isinstance(config, FLAVAImageConfig | FLAVAPretrainingConfig) and config.stored_codes:
        codebook = model.codebook
        check_stored_codes(
            [record for record in records if record.image is not None],
            num_codes=model.config.num_codes,
            image_size=model.config.codebook_image_size,
            tokenizer=None if codebook is None else image_tokenizer.fingerprint(codebook),
        )


def codebook_notes(config: TaskConfig, model: Any) -> list[str]:
    """Return a warning where hidden patches have the codes of a codebook that nobody trained."""
    if not isinstance(config, FLAVAImageConfig | FLAVAPretrainingConfig):
        return []
    if config.stored_codes or model.has_trained_codebook:
        return []
    return [
        "the model's image codebook has random weights, so MIM and MMM-image learn codes that mean "
        "little: name an image tokenizer with --task.image-tokenizer (`triptych train dvae` makes "
        "one), or take `triptych train flava.stagewise`, which trains one first"
    ]


def _tokenizer_if_named(folder: str) -> DVAE | None:
    return image_tokenizer.load(folder) if folder else None


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


def build_collator(
    config: TaskConfig,
    tokenizer: Tokenizer,
    captions: PretrainingTextConfig,
    lengths: TextLengths,
    *,
    train: bool,
    kind: str | None = None,
    images: PatchView | None = None,
) -> AnyCollator[Any]:
    """Build what turns records into the batches of a task.

    Args:
        config: The task's settings.
        tokenizer: The model's words.
        captions: How captions are prepared.
        lengths: Longest texts.
        train: Whether records without labels are a problem.
        kind: Which of the task's kinds of batches, for a task of several.
        images: How images are prepared, for tasks that hide patches.
    """
    match config:
        case MPLUGPretrainingConfig():
            return PretrainingCollator(tokenizer, captions)
        case RetrievalConfig() | VLMoRetrievalConfig():
            return RetrievalCollator(
                tokenizer, max_text_tokens=captions.max_text_tokens, max_words=captions.max_words
            )
        case CaptioningConfig():
            return CaptioningCollator(
                tokenizer, max_text_tokens=captions.max_text_tokens, train=train
            )
        case SCSTConfig():
            return ImageKeyCollator()
        case VQAConfig():
            return VQACollator(
                tokenizer,
                max_question_tokens=lengths.question,
                max_answer_tokens=lengths.answer,
                append_words=config.append_words,
                train=train,
            )
        case GroundingConfig():
            return GroundingCollator(tokenizer, max_text_tokens=lengths.phrase, train=train)
        case NLVR2Config():
            return StatementCollator(
                tokenizer,
                max_text_tokens=config.max_text_tokens,
                swap_probability=config.swap_probability,
                train=train,
            )
        case (
            AnswerClassificationConfig()
            | ImageTextClassificationConfig()
            | TextClassificationConfig()
        ):
            return _classifier_collator(config, tokenizer, train=train)
        case VLMoVisionConfig():
            assert images is not None, "masked image modelling needs the size of patches"
            size = codebook_image_size(images.image.image_size, images.patch_size)
            return MaskedImageCollator(
                images.image, patch_size=images.patch_size, codebook_size=size
            )
        case VLMoLanguageConfig():
            return MaskedTextCollator(tokenizer, captions)
        case VLMoPretrainingConfig():
            return PretrainingCollator(tokenizer, captions)
        case FLAVAImageConfig() | FLAVATextConfig() | FLAVAPretrainingConfig():
            return _flava_collator(config, tokenizer, captions, kind, images)
        case DVAETrainingConfig():
            return ImageCollator()
        case DINOConfig():
            assert images is not None, "self-distillation needs to know its crops"
            return MultiCropCollator(images.image, images.crops)


def _flava_collator(
    config: FLAVAImageConfig | FLAVATextConfig | FLAVAPretrainingConfig,
    tokenizer: Tokenizer,
    captions: PretrainingTextConfig,
    kind: str | None,
    images: PatchView | None,
) -> AnyCollator[Any]:
    """Build the collator of one of FLAVA's kinds of batches.

    Texts alone hide tokens one by one; `captions.whole_word` is for pairs (torchmultimodal).
    """
    if isinstance(config, FLAVATextConfig) or kind == "text":
        assert not isinstance(config, FLAVAImageConfig)
        longest = config.max_text_tokens
        texts = replace(captions, max_text_tokens=longest, whole_word=False)
        return MaskedTextCollator(tokenizer, texts)
    assert images is not None, "masked image modelling needs the size of patches"
    size = codebook_image_size(images.image.image_size, images.patch_size)
    hiding = MaskedImageCollator(
        images.image,
        patch_size=images.patch_size,
        codebook_size=None if config.stored_codes else size,
    )
    if isinstance(config, FLAVAImageConfig) or kind == "image":
        return hiding
    return FLAVAPairCollator(tokenizer, captions, hiding, swap_probability=config.swap_probability)


def _classifier_collator(
    config: AnswerClassificationConfig | ImageTextClassificationConfig | TextClassificationConfig,
    tokenizer: Tokenizer,
    *,
    train: bool,
) -> AnyCollator[Any]:
    match config:
        case AnswerClassificationConfig():
            return AnswerClassCollator(
                tokenizer,
                config.answers,
                normalise=normalize_answer,
                max_question_tokens=config.max_text_tokens,
                train=train,
            )
        case ImageTextClassificationConfig():
            return ImageTextClassCollator(
                tokenizer,
                config.labels,
                text_field=config.text_field,
                with_premise=config.with_premise,
                max_text_tokens=config.max_text_tokens,
                train=train,
            )
        case TextClassificationConfig():
            return TextClassCollator(
                tokenizer,
                None if config.target == "number" else config.labels,
                max_text_tokens=config.max_text_tokens,
                train=train,
            )
