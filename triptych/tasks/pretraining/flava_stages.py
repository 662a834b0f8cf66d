"""FLAVA's unimodal stages: images alone, texts alone (Singh et al. 2022, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from triptych.core.config import check
from triptych.core.outputs import Predictions
from triptych.models.dvae.model import DVAE
from triptych.models.flava.model import FLAVA
from triptych.tasks.pretraining.flava import (
    BATCH_KINDS,
    MASKED_WORDS,
    FLAVAPretraining,
    FLAVAPretrainingConfig,
    Kind,
    check_codes,
    codebook_notes,
    mask_images,
    mask_texts,
    named_tokenizer,
)
from triptych.tasks.pretraining.image_tokenizer import START_HINT
from triptych.tasks.pretraining.pseudo_likelihood import pseudo_perplexity
from triptych.tasks.spec import TaskConfig, TaskRecipe, TaskSpec, TrainedModels


@dataclass(frozen=True, kw_only=True, slots=True)
class FLAVAImageConfig(TaskConfig):
    """Settings of masked image modelling.

    Attributes:
        image_tokenizer: A model folder with a dVAE, or FLAVA's or DALL-E's released weights; its
            codes are the targets of masked patches. Empty keeps the model's own codebook.
        stored_codes: Whether codes are read from the data, as `triptych data tokenize-images` wrote
            them, instead of computed at each step. Images are then neither cropped nor mirrored.
    """

    KIND: ClassVar[str] = "flava_image"

    image_tokenizer: str = ""
    stored_codes: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class FLAVATextConfig(TaskConfig):
    """Settings of masked language modelling.

    Attributes:
        max_text_tokens: Longest text, including [CLS] and [SEP] (released: 512).
    """

    KIND: ClassVar[str] = "flava_text"

    max_text_tokens: int = 512

    def __post_init__(self) -> None:
        """Reject texts without room for a word."""
        length = self.max_text_tokens
        check(length >= 3, "max_text_tokens", length, "be at least 3")


class _Stage:
    """FLAVA's pre-training on batches of one kind; the other encoders are left as they are."""

    kind: ClassVar[Kind]

    def __init__(self, model: FLAVA, image_tokenizer: DVAE | None = None) -> None:
        self._joint = FLAVAPretraining(model, FLAVAPretrainingConfig(), image_tokenizer)

    @property
    def modules(self) -> nn.ModuleDict:
        """The model."""
        return self._joint.modules

    @property
    def model(self) -> FLAVA:
        """The model that is trained."""
        return self._joint.model

    @property
    def batch_keys(self) -> frozenset[str]:
        """Keys that `losses` reads."""
        return BATCH_KINDS[self.kind].batch_keys

    @property
    def objective_names(self) -> frozenset[str]:
        """The stage's one objective."""
        return BATCH_KINDS[self.kind].objectives

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return the stage's loss by its name, if it is active."""
        return self._joint.losses(batch, active=active)

    def after_step(self, step: int) -> None:
        """Do nothing that matters here: the contrastive scale stays where it is."""
        self._joint.after_step(step)

    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return nothing but the indices of the samples: no text meets an image yet."""
        return Predictions(index=batch["index"].tolist())


class FLAVAImage(_Stage):
    """MIM: the image encoder names the codes of masked patches.

    Args:
        model: What is trained.
        config: The settings.
        image_tokenizer: A dVAE whose encoder becomes the model's codebook.
    """

    kind = "image"

    def __init__(
        self, model: FLAVA, config: FLAVAImageConfig, image_tokenizer: DVAE | None = None
    ) -> None:
        super().__init__(model, image_tokenizer)
        self.config = config


class FLAVAText(_Stage):
    """MLM: the text encoder names hidden words.

    Args:
        model: What is trained.
        config: The settings.
    """

    kind = "text"

    def __init__(self, model: FLAVA, config: FLAVATextConfig) -> None:
        super().__init__(model)
        self.config = config

    def pseudo_likelihood(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return the pseudo-likelihood of each text; see `text_pseudo_likelihood`."""
        return self._joint.pseudo_likelihood(batch)


IMAGE_SPEC = TaskSpec(
    config=FLAVAImageConfig,
    trained_for="vision",
    build=lambda config, model, *_: FLAVAImage(model, config, named_tokenizer(config)),
    collator=mask_images,
    needs=("image",),
    models=TrainedModels(families=("flava",)),
    recipes=(TaskRecipe("flava.image", "flava"),),
    pretrains=True,
    tokenizer="optional",
    check_data=check_codes,
    notes=codebook_notes,
    start_hint=START_HINT,
)

TEXT_SPEC = TaskSpec(
    config=FLAVATextConfig,
    trained_for="language",
    build=lambda config, model, *_: FLAVAText(model, config),
    collator=lambda config, inputs: mask_texts(config.max_text_tokens, inputs),
    needs=("text|caption",),
    models=TrainedModels(families=("flava",)),
    recipes=(TaskRecipe("flava.text", "flava", default=True),),
    evaluations=(pseudo_perplexity("text", lambda config, _: config.max_text_tokens),),
    pretrains=True,
    chances=lambda config: {"mlm": MASKED_WORDS},
)
