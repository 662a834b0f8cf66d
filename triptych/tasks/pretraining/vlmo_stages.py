"""VLMo's first two stages: images alone, then texts alone (paper, section 3.4)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.core.errors import CapabilityError, ConfigError, DataError
from triptych.core.host import alike, select
from triptych.core.outputs import Predictions
from triptych.data.collate import MaskedImageCollator
from triptych.data.collate.pretraining import MaskedTextCollator
from triptych.models.dvae.config import codebook_image_size
from triptych.models.dvae.model import DVAE
from triptych.models.vlmo.model import VLMo
from triptych.models.vlmo.trunk import TokenSequence
from triptych.objectives.mim import code_labels, mim_loss
from triptych.objectives.mlm import token_loss
from triptych.tasks.pretraining import image_tokenizer as image_tokenizers
from triptych.tasks.pretraining.padding import cut_padding, is_read, true_positions
from triptych.tasks.pretraining.pseudo_likelihood import pseudo_perplexity, text_pseudo_likelihood
from triptych.tasks.spec import (
    CollatorInputs,
    TaskConfig,
    TaskRecipe,
    TaskSpec,
    TrainedModels,
)
from triptych.train.chance import Chance

VISION_PARTS = (
    r"(patch|class|position)_embedding.*",
    r"mask_token",
    r"modality_embedding\..*",
    r"trunk\.(norm|relative_positions)\..*",
    r"trunk\.blocks\.\d+\.(attention|mlp)_scale",
    r"trunk\.blocks\.\d+\.attention(_norm)?\..*",
    r"trunk\.blocks\.\d+\.experts\.(image|shared)\..*",
)
"""What the first stage trains: all that an image goes through."""

LANGUAGE_PARTS = (
    r"text_embedding\..*",
    r"modality_embedding\..*",
    r"mlm_head\..*",
    r"trunk\.(norm|relative_positions)\..*",
    r"trunk\.blocks\.\d+\.experts\.(text|shared)\..*",
)
"""What the second stage trains, as the released code does.

Frozen: the attention with its norm and layer scales, and everything of images. Of the position
table and the type table, the rows of images get no gradient and no decay, so they stay too. (The
paper says that attention and vision experts are frozen; the last norm and the table train.)
"""


def train_only(model: nn.Module, parts: Sequence[str]) -> None:
    """Freeze every parameter whose name matches none of the patterns, and free the others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(re.fullmatch(pattern, name) for pattern in parts))


class _StageTask:
    """A Task of a VLMo that changes nothing after a step."""

    def __init__(self, model: VLMo) -> None:
        self.modules = nn.ModuleDict({"model": model})

    @property
    def model(self) -> VLMo:
        """The model that is trained."""
        return cast(VLMo, self.modules["model"])

    def after_step(self, step: int) -> None:
        """Do nothing: there is no teacher, no queue and no temperature."""
        del step


@dataclass(frozen=True, kw_only=True, slots=True)
class VLMoVisionConfig(TaskConfig):
    """Settings of the first stage, masked image modelling.

    Attributes:
        image_tokenizer: A model folder with a dVAE, whose codes are the targets of masked patches.
    """

    KIND: ClassVar[str] = "vlmo_vision"

    image_tokenizer: str = ""


class VLMoVision(_StageTask):
    """Stage 1: name the codes of masked patches (BEiT, section 2.3), images alone.

    Args:
        model: With a mask token.
        config: Settings.
        image_tokenizer: Its codes are the targets; it is frozen.

    Raises:
        CapabilityError: The model has no mask token.
        ConfigError: The tokenizer's grid is not that of the patches.
    """

    batch_keys = frozenset({"hidden_patches", "image", "index"})
    objective_names = frozenset({"mim"})

    def __init__(self, model: VLMo, config: VLMoVisionConfig, image_tokenizer: DVAE) -> None:
        if model.mask_token is None:
            raise CapabilityError("masked image modelling needs a model with mask_token = True")
        wanted = codebook_image_size(model.config.image_size, model.config.patch_size)
        if image_tokenizer.image_size != wanted:
            raise ConfigError(
                f"the image tokenizer reads {image_tokenizer.image_size} px, but a model of "
                f"{model.config.image_size} px with patches of {model.config.patch_size} px has "
                f"one code a patch at {wanted} px: train one with --model.image-size {wanted}"
            )
        super().__init__(model)
        self.config = config
        train_only(model, VISION_PARTS)
        head = nn.Linear(model.config.embed_dim, image_tokenizer.config.num_codes)
        nn.init.normal_(head.weight, std=model.config.init_std)
        nn.init.zeros_(head.bias)
        self.modules["mim_head"] = head
        self.modules["image_tokenizer"] = image_tokenizer.requires_grad_(False).eval()

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"mim": mean cross-entropy of the codes of masked patches}.

        Only masked patches go through the last block and the head.

        Args:
            batch: `image` (B, 3, S, S), `hidden_patches` (B, P) or (B, grid, grid) bool, and
                `image_codes` (B, P) int64 or `codebook_image` (B, 3, S', S') in [0.1, 0.9].
            active: Not read: there is one objective.

        Raises:
            DataError: The batch has neither codes nor the tokenizer's view.
        """
        del active
        logits, labels = self.code_logits(batch)
        return {"mim": mim_loss(logits, labels)}

    def code_logits(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return (M, V) scores of the codes of the M masked patches, and their (M,) codes."""
        hidden = alike(lambda x: x.flatten(1), batch["hidden_patches"])
        labels = code_labels(self._codes(batch), hidden)  # (B, P)
        inputs = self.model.image_inputs(batch["image"], hidden)
        positions, valid = true_positions(alike(lambda x: F.pad(x, (1, 0)), hidden))
        states = self.model.trunk.read(TokenSequence(inputs), [(slice(None), positions)])[0]
        return self.modules["mim_head"](select(states, valid)), select(labels, hidden)

    def _codes(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return (B, P) int64 codes: the stored ones, or what the tokenizer says."""
        if "image_codes" in batch:
            return batch["image_codes"]
        if "codebook_image" not in batch:
            raise DataError("a batch of images needs `image_codes` or `codebook_image`")
        tokenizer = cast(DVAE, self.modules["image_tokenizer"]).eval()
        with torch.autocast(batch["codebook_image"].device.type, enabled=False):
            return tokenizer.codes(batch["codebook_image"])

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return the (B, D) [CLS] state of each image, for a linear probe."""
        states = self.model.encode_image(batch["image"])
        return Predictions(index=batch["index"].tolist(), embeddings={"image": states.pooled})


@dataclass(frozen=True, kw_only=True, slots=True)
class VLMoLanguageConfig(TaskConfig):
    """Settings of the second stage: there are none beside those of the texts."""

    KIND: ClassVar[str] = "vlmo_language"


class VLMoLanguage(_StageTask):
    """Stage 2: masked language modelling on texts alone, through the language experts.

    Args:
        model: Usually from the first stage, or from BEiT.
        config: Settings.
    """

    batch_keys = frozenset({"mlm_token_ids", "mlm_labels", "text_mask", "index"})
    objective_names = frozenset({"mlm"})

    def __init__(self, model: VLMo, config: VLMoLanguageConfig) -> None:
        super().__init__(model)
        self.config = config
        train_only(model, LANGUAGE_PARTS)

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"mlm": mean cross-entropy of the hidden words}.

        Only hidden words go through the last block and the head.

        Args:
            batch: `mlm_token_ids`, `mlm_labels` (B, L) int64, `text_mask` (B, L) bool.
            active: Not read: there is one objective.
        """
        del active
        batch = cut_padding(batch)
        labels = batch["mlm_labels"]
        logits = self._hidden_word_logits(batch["mlm_token_ids"], batch["text_mask"], labels)
        return {"mlm": token_loss(logits, select(labels, is_read(labels)))}

    def _hidden_word_logits(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Return (H, V) scores of the hidden words of texts (R, L)."""
        positions, valid = true_positions(is_read(labels))
        sequence = TokenSequence(text=self.model.text_inputs(ids), text_mask=mask)
        states = self.model.trunk.read(sequence, [(slice(None), positions)])[0]
        return self.model.word_logits(select(states, valid))

    @torch.no_grad()
    def pseudo_likelihood(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return the pseudo-likelihood of each text; see `text_pseudo_likelihood`."""
        return text_pseudo_likelihood(self._hidden_word_logits, batch)

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return the (B, D) [CLS] state of each text; reads `token_ids` and `text_mask`."""
        states = self.model.encode_text(batch["token_ids"], batch["text_mask"])
        return Predictions(index=batch["index"].tolist(), embeddings={"text": states.pooled})


def _build_vision(config: VLMoVisionConfig, model: VLMo, *_: object) -> VLMoVision:
    size = codebook_image_size(model.config.image_size, model.config.patch_size)
    return VLMoVision(model, config, image_tokenizers.load(config.image_tokenizer, image_size=size))


def _mask_patches(config: VLMoVisionConfig, inputs: CollatorInputs) -> MaskedImageCollator:
    del config
    view = inputs.patches()
    size = codebook_image_size(view.image.image_size, view.patch_size)
    return MaskedImageCollator(view.image, patch_size=view.patch_size, codebook_size=size)


VISION_SPEC = TaskSpec(
    config=VLMoVisionConfig,
    trained_for="vision",
    build=_build_vision,
    collator=_mask_patches,
    needs=("image",),
    models=TrainedModels(families=("vlmo",)),
    recipes=(TaskRecipe("vlmo.vision", "vlmo"),),
    pretrains=True,
    tokenizer="optional",
    start_hint=image_tokenizers.START_HINT,
)

LANGUAGE_SPEC = TaskSpec(
    config=VLMoLanguageConfig,
    trained_for="language",
    build=lambda config, model, *_: VLMoLanguage(model, config),
    collator=lambda config, inputs: MaskedTextCollator(inputs.tokenizer, inputs.captions),
    needs=("text|caption",),
    models=TrainedModels(families=("vlmo",)),
    recipes=(TaskRecipe("vlmo.language", "vlmo"),),
    evaluations=(pseudo_perplexity("text", lambda _, inputs: inputs.captions.max_text_tokens),),
    pretrains=True,
    chances=lambda config: {"mlm": Chance(labels="mlm_labels")},
)
