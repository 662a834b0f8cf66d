"""Retrieval with FLAVA: global contrast, and ITM on hard negatives.

The paper retrieves without fine-tuning. Here its GC goes on with whole images and texts, and ITM,
which pre-training teaches on masked pairs with one caption in ten swapped, learns the whole ones
and the wrong ones that GC takes for likely, as mPLUG and VLMo do: that is what re-ranking reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from triptych.core.config import check
from triptych.core.outputs import ImageFeatures, Predictions, TextFeatures
from triptych.distributed.collectives import RowExchange, all_gather, mean_over_ranks
from triptych.distributed.env import world_size
from triptych.models.flava.model import FLAVA
from triptych.objectives import IGNORE_INDEX
from triptych.objectives.global_contrastive import (
    ContrastiveScope,
    PairKeys,
    global_contrastive_loss,
)
from triptych.objectives.gradient_cache import run_in_chunks
from triptych.objectives.matching import sample_hard_negatives
from triptych.objectives.mlm import token_sum
from triptych.objectives.vitals import PairWatch
from triptych.tasks.finetuning.base import ModelTask
from triptych.tasks.finetuning.retrieval import NAMES, SEARCH, retrieval_collator
from triptych.tasks.pretraining.flava import flava_temperature
from triptych.tasks.pretraining.padding import cut_padding
from triptych.tasks.spec import TaskConfig, TaskRecipe, TaskSpec, TrainedModels
from triptych.train.chance import ITM_CHANCE, Chance


@dataclass(frozen=True, kw_only=True, slots=True)
class FLAVARetrievalConfig(TaskConfig):
    """Settings of FLAVA's retrieval: GC and ITM.

    Attributes:
        contrastive: "global" sends the contrastive gradient to every process, "local" treats the
            embeddings of other processes as constants.
        max_logit_scale: Upper clamp of log(1/τ) (4.6052: τ is at least 0.01); the lower one is 0.
        chunk_size: Pairs whose activations are kept at a time; see `FLAVAPretrainingConfig`.
    """

    KIND: ClassVar[str] = "flava_retrieval"

    contrastive: ContrastiveScope = "global"
    max_logit_scale: float = 4.6052
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        """Reject values out of range."""
        check(self.max_logit_scale > 0, "max_logit_scale", self.max_logit_scale, "be above 0")
        chunk = self.chunk_size
        check(chunk is None or chunk >= 1, "chunk_size", chunk, "be at least 1, or absent")


class FLAVARetrieval(ModelTask[FLAVA]):
    """GC over the pairs of all processes, and ITM on pairs, wrong images and wrong texts.

    Images and texts are encoded once. Negatives are drawn from all processes, and of another
    process only the states of the drawn ones are fetched, with their gradients. Pairs that share an
    image or a caption are positives in GC and never negatives in ITM.

    Args:
        model: What is trained; its contrastive scale and its ITM head too.
        config: The settings.
    """

    batch_keys = frozenset({"image", "token_ids", "text_mask", "image_key", "caption_key", "index"})
    objective_names = frozenset({"gc", "itm"})

    def __init__(self, model: FLAVA, config: FLAVARetrievalConfig) -> None:
        super().__init__(model)
        self.config = config
        for head in (model.mim_head, model.mlm_head, model.mmm_image_head, model.mmm_text_head):
            head.requires_grad_(False)
        model.set_recompute_cheap(config.chunk_size is None)
        self._watch = PairWatch()

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"gc", "itm"}, as far as active.

        Args:
            batch: `image` (B, 3, H, W), `token_ids` and `text_mask` (B, L), `image_key` and
                `caption_key` (B,), equal for the same image and for the same caption.
            active: Objectives to compute.
        """
        batch = cut_padding(batch, together="itm" in active)
        images, texts, mask, image, text = run_in_chunks(
            self._encode,
            batch["image"],
            batch["token_ids"],
            batch["text_mask"],
            chunk_size=self.config.chunk_size,
        )
        losses: dict[str, Tensor] = {}
        self._watch.note_embeddings(image, text)
        if "gc" in active:
            losses["gc"] = global_contrastive_loss(
                image,
                text,
                self.model.logit_scale,
                keys=PairKeys(batch["image_key"], batch["caption_key"]),
                scope=self.config.contrastive,
            )
        if "itm" in active:
            keys = torch.stack([batch["image_key"], batch["caption_key"]], dim=1)
            losses["itm"] = self._itm(images, texts, mask, image.detach(), text.detach(), keys)
        return losses

    def after_step(self, step: int) -> None:
        """Clamp the contrastive scale to [0, max_logit_scale]."""
        del step
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, self.config.max_logit_scale)

    def batch_vitals(self, *, spread: bool) -> dict[str, Tensor]:
        """Return scalars of the embeddings and of ITM's labels; see `PairWatch`."""
        return self._watch.take(spread=spread)

    def state_vitals(self) -> dict[str, float]:
        """Return numbers of the temperature."""
        return flava_temperature(self.model, self.config.max_logit_scale)

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return the embeddings of both sides; reads `image`, `token_ids`, `text_mask`."""
        *_, image, text = self._encode(batch["image"], batch["token_ids"], batch["text_mask"])
        return Predictions(index=batch["index"].tolist(), embeddings={"image": image, "text": text})

    def _encode(self, image: Tensor, token_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, ...]:
        """Return states (b, N, D) and (b, L, D), what fusion attends to, and embeddings (b, E)."""
        images = self.model.encode_image(image)
        texts = self.model.encode_text(token_ids, text_mask)
        embeddings = self.model.embed_image(images), self.model.embed_text(texts)
        return images.tokens, texts.tokens, texts.mask, *embeddings

    def _itm(
        self,
        images: Tensor,
        texts: Tensor,
        mask: Tensor,
        image: Tensor,
        text: Tensor,
        own: Tensor,
    ) -> Tensor:
        """Return the loss of pairs, of texts with wrong images and of images with wrong texts.

        Args:
            images: (B, N, D) states.
            texts: (B, L, D) states, equally wide on all processes.
            mask: (B, L) bool, True = the fusion attends to the token.
            image: (B, E) embeddings, without a gradient.
            text: (B, E) embeddings, without a gradient.
            own: (B, 2) int64 keys of image and caption.
        """
        keys = all_gather(own)
        temperature = torch.exp(-self.model.logit_scale.detach().float())
        wrong_text, has_text = sample_hard_negatives(
            image, all_gather(text), temperature, own, keys
        )
        wrong_image, has_image = sample_hard_negatives(
            text, all_gather(image), temperature, own, keys
        )
        wanted = all_gather(torch.stack([wrong_text, wrong_image])).view(world_size(), 2, -1).cpu()
        of_texts, of_images = (
            RowExchange(wanted[:, side].contiguous(), len(own), own.device) for side in (0, 1)
        )
        labels = torch.stack([torch.ones_like(has_text), has_image, has_text], dim=1)  # (B, 3)
        target = labels.new_tensor([1, 0, 0], dtype=torch.int64).expand(labels.shape)
        target = target.masked_fill(~labels, IGNORE_INDEX)
        self._watch.note_matches(target)
        (sums,) = run_in_chunks(
            self._match,
            images,
            texts,
            mask,
            of_images.extend(images).index_select(0, of_images.position),
            of_texts.extend(texts).index_select(0, of_texts.position),
            all_gather(mask).index_select(0, wrong_text),
            target,
            chunk_size=self.config.chunk_size,
        )
        return mean_over_ranks(sums.sum(), labels.sum())

    def _match(
        self,
        images: Tensor,
        texts: Tensor,
        mask: Tensor,
        wrong_images: Tensor,
        wrong_texts: Tensor,
        wrong_mask: Tensor,
        target: Tensor,
    ) -> Tensor:
        """Return the summed cross-entropy (1,) of 3·b pairs; `target` (b, 3) as above."""
        own = torch.arange(len(images), device=images.device)
        logits = self.model.match_pairs(
            ImageFeatures(torch.cat([images, wrong_images])),
            TextFeatures(
                torch.cat([texts, texts, wrong_texts]), torch.cat([mask, mask, wrong_mask])
            ),
            image_index=torch.cat([own, own + len(own), own]),
        )
        return token_sum(logits, target.T.flatten())[None]


SPEC = TaskSpec(
    config=FLAVARetrievalConfig,
    trained_for="retrieval",
    build=lambda config, model, *_: FLAVARetrieval(model, config),
    collator=retrieval_collator,
    needs=("image", "caption"),
    models=TrainedModels(families=("flava",)),
    recipes=(TaskRecipe("flava.retrieval", "flava"),),
    serves=("match", "embed", "classify"),
    evaluations=(SEARCH, NAMES),
    chances=lambda config: {"gc": Chance(columns=True), "itm": ITM_CHANCE},
)
