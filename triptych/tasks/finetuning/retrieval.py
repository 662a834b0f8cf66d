"""Image-text retrieval: train ITC and ITM, shortlist by ITC, re-rank by ITM (paper, 5.2.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.core.outputs import ImageFeatures, Predictions, TextFeatures
from triptych.models.mplug.model import MPLUG
from triptych.tasks.pretraining.mplug import MPLUGPretraining, MPLUGPretrainingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalConfig:
    """Settings of retrieval.

    Attributes:
        temperature: Start value of τ.
        queue_size: Pairs in the feature queue (65,536 in the released code); 0 leaves it out.
        momentum: Share of the momentum encoder kept each step (0.995); 0 leaves it out.
        alpha: Weight of the momentum encoders' distribution in ITC targets (0.4).
    """

    temperature: float = 0.07
    queue_size: int = 65536
    momentum: float = 0.995
    alpha: float = 0.4


class Retrieval:
    """The ITC and ITM part of pre-training, on its own."""

    batch_keys = frozenset({"image", "token_ids", "text_mask", "image_key", "caption_key", "index"})
    objective_names = frozenset({"itc", "itm"})

    def __init__(self, model: MPLUG, config: RetrievalConfig) -> None:
        self._pretraining = MPLUGPretraining(
            model,
            MPLUGPretrainingConfig(
                temperature=config.temperature,
                queue_size=config.queue_size,
                momentum=config.momentum,
                alpha=config.alpha,
            ),
        )

    @property
    def modules(self) -> nn.ModuleDict:
        """The model, the temperature, and the queue and teacher if there are any."""
        return self._pretraining.modules

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"itc", "itm"}, as far as active."""
        return self._pretraining.losses(batch, active=active & self.objective_names)

    def after_step(self, step: int) -> None:
        """Move the teacher, push the queue and clamp the temperature."""
        self._pretraining.after_step(step)

    def extra_state(self) -> dict[str, int]:
        """Return what a checkpoint must hold besides tensors."""
        return self._pretraining.extra_state()

    def load_extra_state(self, state: dict[str, int]) -> None:
        """Restore what `extra_state` returned."""
        self._pretraining.load_extra_state(state)

    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return the embeddings of both sides."""
        return self._pretraining.predict(batch)


@dataclass(frozen=True, slots=True)
class EncodedSet:
    """All pictures and texts of an evaluation, each encoded once.

    Attributes:
        image_tokens: (I, N, D) image states.
        text_tokens: (T, L, D) text states, padded to the longest.
        text_mask: (T, L) bool.
        image_embedding: (I, E).
        text_embedding: (T, E).
    """

    image_tokens: Tensor
    text_tokens: Tensor
    text_mask: Tensor
    image_embedding: Tensor
    text_embedding: Tensor


@torch.no_grad()
def encode_set(model: MPLUG, batches: Iterable[Mapping[str, Tensor]]) -> EncodedSet:
    """Encode batches of `image`, `token_ids` and `text_mask`, pair by pair."""
    images, texts, masks, image_embeddings, text_embeddings = [], [], [], [], []
    for batch in batches:
        image = model.encode_image(batch["image"])
        text = model.encode_text(batch["token_ids"], batch["text_mask"])
        images.append(image.tokens)
        texts.append(text.tokens)
        masks.append(text.mask)
        image_embeddings.append(model.embed_image(image))
        text_embeddings.append(model.embed_text(text))
    width = max(mask.shape[1] for mask in masks)
    return EncodedSet(
        torch.cat(images),
        torch.cat([F.pad(t, (0, 0, 0, width - t.shape[1])) for t in texts]),
        torch.cat([F.pad(m, (0, width - m.shape[1])) for m in masks]),
        torch.cat(image_embeddings),
        torch.cat(text_embeddings),
    )


@torch.no_grad()
def score_pairs(
    model: MPLUG, encoded: EncodedSet, pairs: Tensor, *, local_batch_size: int = 1024
) -> Tensor:
    """Score (image, text) pairs by the ITM head.

    Each picture's keys and values are projected once for all its pairs in a batch, and texts are
    cut to the longest of the batch.

    Args:
        model: The model that encoded the set.
        encoded: What `encode_set` returned.
        pairs: (M, 2) int64: image and text positions.
        local_batch_size: Pairs a pass.

    Returns:
        (M,) float32 logit of "match" minus logit of "no match", in the order of `pairs`.
    """
    lengths = encoded.text_mask.sum(dim=1)[pairs[:, 1]]
    order = torch.argsort(pairs[:, 0] * (int(lengths.max()) + 1) + lengths)
    scores = torch.empty(len(pairs), device=pairs.device)
    for rows in torch.split(order, local_batch_size):  # type: ignore[no-untyped-call]
        images, image_index = torch.unique(pairs[rows, 0], return_inverse=True)
        texts = pairs[rows, 1]
        longest = int(lengths[rows].max())
        fused = model.fuse(
            ImageFeatures(encoded.image_tokens[images]),
            TextFeatures(encoded.text_tokens[texts, :longest], encoded.text_mask[texts, :longest]),
            image_index=image_index,
        )
        logits = model.match_logits(fused).float()
        scores[rows] = logits[:, 1] - logits[:, 0]
    return scores
