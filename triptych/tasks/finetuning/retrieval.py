"""Image-text retrieval: ITC ranks, ITM re-ranks the best (mPLUG, section 5.2.3; VLMo, 3.5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.core.outputs import ImageFeatures, Predictions, TextFeatures
from triptych.data.collate import (
    RetrievalCollator,
)
from triptych.models.base import VisionLanguageModel, match_pairs
from triptych.models.mplug.model import MPLUG
from triptych.models.vlmo.model import VLMo
from triptych.tasks.pretraining.mplug import MPLUGPretraining, MPLUGPretrainingConfig
from triptych.tasks.pretraining.vlmo import VLMoPretraining, VLMoPretrainingConfig
from triptych.tasks.spec import (
    CollatorInputs,
    Evaluation,
    TaskConfig,
    TaskRecipe,
    TaskSpec,
    TrainedModels,
)
from triptych.train.task import StatefulTask


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalConfig(TaskConfig):
    """Settings of mPLUG's retrieval: ITC and ITM.

    Attributes:
        temperature: Initial value of τ.
        queue_size: Pairs in the feature queue (released code: 65,536); 0 disables it.
        momentum: Decay of the momentum encoders' running average (0.995); 0 disables them.
        alpha: Weight of the momentum encoders' distribution in the ITC targets (0.4).
        alpha_ramp_steps: Steps over which alpha grows from 0 (released: the first epoch).
        chunk_size: Pairs whose activations are kept at a time; see `MPLUGPretrainingConfig`.
    """

    temperature: float = 0.07
    queue_size: int = 65536
    momentum: float = 0.995
    alpha: float = 0.4
    alpha_ramp_steps: int = 0
    chunk_size: int | None = None

    def pretraining(self, model: MPLUG) -> MPLUGPretraining:
        """Return the pre-training task whose contrastive and matching parts are trained."""
        config = MPLUGPretrainingConfig(
            temperature=self.temperature,
            queue_size=self.queue_size,
            momentum=self.momentum,
            alpha=self.alpha,
            alpha_ramp_steps=self.alpha_ramp_steps,
            chunk_size=self.chunk_size,
        )
        return MPLUGPretraining(model, config)


@dataclass(frozen=True, kw_only=True, slots=True)
class VLMoRetrievalConfig(TaskConfig):
    """Settings of VLMo's retrieval: ITC as in the released code, and ITM if it has a weight.

    Attributes:
        temperature: Initial value of τ.
        min_temperature: Lower clamp of τ.
        max_temperature: Upper clamp of τ.
        chunk_size: Pairs whose activations are kept at a time; see `VLMoPretrainingConfig`.
    """

    KIND: ClassVar[str] = "vlmo_retrieval"

    temperature: float = 0.07
    min_temperature: float = 0.01
    max_temperature: float = 1.0
    chunk_size: int | None = None

    def pretraining(self, model: VLMo) -> VLMoPretraining:
        """Return the pre-training task whose contrastive and matching parts are trained."""
        config = VLMoPretrainingConfig(
            temperature=self.temperature,
            min_temperature=self.min_temperature,
            max_temperature=self.max_temperature,
            chunk_size=self.chunk_size,
        )
        pretraining = VLMoPretraining(model, config)
        model.mlm_head.requires_grad_(False)
        return pretraining


class Retrieval:
    """The ITC and ITM parts of a model's pre-training, on their own.

    mPLUG's released fine-tuning does not clamp τ; here it is clamped as in pre-training.

    Args:
        model: A model of the family that the config is for.
        config: Says which pre-training task computes the losses, and its settings.
    """

    batch_keys = frozenset({"image", "token_ids", "text_mask", "image_key", "caption_key", "index"})

    def __init__(self, model: Any, config: RetrievalConfig | VLMoRetrievalConfig) -> None:
        self._pretraining = config.pretraining(model)
        self.objective_names = self._pretraining.objective_names & {"itc", "itm"}

    @property
    def modules(self) -> nn.ModuleDict:
        """The model, the temperature, and the queue and teacher if there are any."""
        return self._pretraining.modules

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"itc", "itm"}, as far as active."""
        return self._pretraining.losses(batch, active=active & self.objective_names)

    def after_step(self, step: int) -> None:
        """Update the teacher and the queue, if there are any, and clamp the temperature."""
        self._pretraining.after_step(step)

    def extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold besides tensors."""
        inner = self._pretraining
        return inner.extra_state() if isinstance(inner, StatefulTask) else {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` returned."""
        if isinstance(self._pretraining, StatefulTask):
            self._pretraining.load_extra_state(state)

    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return the embeddings of both sides."""
        return self._pretraining.predict(batch)


@dataclass(frozen=True, slots=True)
class EncodedSet:
    """All images and texts of an evaluation, each encoded once.

    Attributes:
        image: I images.
        text: T texts, padded to the longest.
        image_embedding: (I, E).
        text_embedding: (T, E).
    """

    image: ImageFeatures
    text: TextFeatures
    image_embedding: Tensor
    text_embedding: Tensor


@torch.no_grad()
def encode_images(
    model: VisionLanguageModel, batches: Iterable[Mapping[str, Tensor]]
) -> tuple[ImageFeatures, Tensor]:
    """Encode batches of `image`: states, and embeddings (I, E)."""
    found, embeddings = [], []
    for batch in batches:
        found.append(model.encode_image(batch["image"]))
        embeddings.append(model.embed_image(found[-1]))
    return ImageFeatures.join(found), torch.cat(embeddings)


@torch.no_grad()
def encode_texts(
    model: VisionLanguageModel, batches: Iterable[Mapping[str, Tensor]]
) -> tuple[TextFeatures, Tensor]:
    """Encode batches of `token_ids` and `text_mask`: states, and embeddings (T, E)."""
    found, embeddings = [], []
    for batch in batches:
        found.append(model.encode_text(batch["token_ids"], batch["text_mask"]))
        embeddings.append(model.embed_text(found[-1]))
    width = max(text.mask.shape[1] for text in found)
    joined = TextFeatures(
        torch.cat([_padded(text.tokens, width) for text in found]),
        torch.cat([_padded(text.mask[..., None], width)[..., 0] for text in found]),
        _joined([text.cls for text in found]),
        _joined([None if t.inputs is None else _padded(t.inputs, width) for t in found]),
    )
    return joined, torch.cat(embeddings)


@torch.no_grad()
def score_pairs(
    model: Any, encoded: EncodedSet, pairs: Tensor, *, local_batch_size: int = 1024
) -> Tensor:
    """Score (image, text) pairs by the ITM head.

    Each image is fused with all its texts of a batch at once, and texts are cut to the longest of
    the batch; mPLUG computes no padding at all.

    Args:
        model: The model that encoded the set, with `match_logits`.
        encoded: The images and texts.
        pairs: (M, 2) int64: image and text positions.
        local_batch_size: Pairs a pass.

    Returns:
        (M,) float32 logit of "match" minus logit of "no match", in the order of `pairs`.
    """
    lengths = encoded.text.mask.sum(dim=1)[pairs[:, 1]]
    order = torch.argsort(pairs[:, 0] * (int(lengths.max()) + 1) + lengths)
    scores = torch.empty(len(pairs), device=pairs.device)
    for rows in torch.split(order, local_batch_size):  # type: ignore[no-untyped-call]
        images, image_index = torch.unique(pairs[rows, 0], return_inverse=True)
        text = encoded.text.select(pairs[rows, 1], int(lengths[rows].max()))
        logits = match_pairs(model, encoded.image.select(images), text, image_index).float()
        scores[rows] = logits[:, 1] - logits[:, 0]
    return scores


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Join rows of what every part has or none."""
    return torch.cat([part for part in parts if part is not None]) if parts[0] is not None else None


def _padded(states: Tensor, width: int) -> Tensor:
    """Pad (T, L, D) with zeros to (T, width, D)."""
    return F.pad(states, (0, 0, 0, width - states.shape[1]))


def retrieval_collator(config: object, inputs: CollatorInputs) -> RetrievalCollator:
    """Build the collator of pairs with the keys of their images and captions."""
    del config
    captions = inputs.captions
    return RetrievalCollator(
        inputs.tokenizer, max_text_tokens=captions.max_text_tokens, max_words=captions.max_words
    )


SEARCH: Evaluation[Any] = Evaluation("retrieval", "caption", procedure="search")


NAMES: Evaluation[Any] = Evaluation("zero_shot", "label", procedure="names")


SPEC = TaskSpec(
    config=RetrievalConfig,
    trained_for="retrieval",
    build=lambda config, model, *_: Retrieval(model, config),
    collator=retrieval_collator,
    needs=("image", "caption"),
    models=TrainedModels(families=("mplug",)),
    recipes=(TaskRecipe("mplug.retrieval", "mplug"),),
    serves=("match", "embed", "classify"),
    evaluations=(SEARCH, NAMES),
    optional_objectives=frozenset({"itm"}),
)


VLMO_SPEC = TaskSpec(
    config=VLMoRetrievalConfig,
    trained_for="retrieval",
    build=lambda config, model, *_: Retrieval(model, config),
    collator=retrieval_collator,
    needs=("image", "caption"),
    models=TrainedModels(families=("vlmo",)),
    recipes=(TaskRecipe("vlmo.retrieval", "vlmo"),),
    serves=("match", "embed", "classify"),
    evaluations=(SEARCH, NAMES),
)
