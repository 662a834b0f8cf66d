"""VLMo's third stage: ITC, ITM and MLM on pairs (paper, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.core.config import check
from triptych.core.host import select
from triptych.core.outputs import Predictions
from triptych.data.collate import PretrainingCollator
from triptych.distributed.collectives import RowExchange, all_gather, mean_over_ranks
from triptych.distributed.env import world_size
from triptych.models.vlmo.model import VLMo
from triptych.models.vlmo.trunk import TokenSequence
from triptych.objectives import IGNORE_INDEX
from triptych.objectives.global_contrastive import PairKeys, global_contrastive_loss
from triptych.objectives.gradient_cache import run_in_chunks
from triptych.objectives.matching import sample_hard_negatives
from triptych.objectives.mlm import token_sum
from triptych.objectives.vitals import PairWatch, temperature_vitals
from triptych.tasks.pretraining.padding import cut_padding, is_read, true_positions
from triptych.tasks.pretraining.work import vlmo_work
from triptych.tasks.spec import TaskConfig, TaskRecipe, TaskSpec, TrainedModels
from triptych.train.chance import ITM_CHANCE, Chance

OBJECTIVES = frozenset({"itc", "itm", "mlm"})


@dataclass(frozen=True, kw_only=True, slots=True)
class VLMoPretrainingConfig(TaskConfig):
    """Settings of the objectives on pairs.

    Attributes:
        temperature: Initial value of τ (0.07 in the released code); log(1/τ) is learned.
        min_temperature: Lower clamp of τ (0.01 in CLIP; the released code has none).
        max_temperature: Upper clamp of τ.
        fused_itc: Whether ITC is also computed on embeddings of the vision-language experts, with
            its own temperature; the loss is the mean of both (released code: yes, paper: no). Needs
            a model with `fused_contrast`.
        negatives: Where ITM's hard negatives come from: "global" samples from the batches of all
            processes, "local" from this process's.
        chunk_size: Pairs whose activations are kept at a time. The rest is computed again in the
            backward pass: a contrastive batch of any size on one device, the same losses and
            gradients. None keeps the whole batch.
    """

    KIND: ClassVar[str] = "vlmo_pretraining"

    temperature: float = 0.07
    min_temperature: float = 0.01
    max_temperature: float = 1.0
    fused_itc: bool = False
    negatives: Literal["global", "local"] = "global"
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        """Reject values out of range."""
        chunk = self.chunk_size
        check(chunk is None or chunk >= 1, "chunk_size", chunk, "be at least 1, or absent")
        check(
            0 < self.min_temperature <= self.temperature <= self.max_temperature,
            "temperature",
            self.temperature,
            f"be in [{self.min_temperature}, {self.max_temperature}]",
        )


@dataclass(frozen=True, slots=True)
class Embedded:
    """Embeddings of a batch of pairs, one entry a branch: own experts, then fused ones.

    Attributes:
        image: (B, E) each, L2-normalised.
        text: (B, E) each, L2-normalised.
        logit_scale: log(1/τ) of each.
    """

    image: tuple[Tensor, ...]
    text: tuple[Tensor, ...]
    logit_scale: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class HardNegatives:
    """A wrong image for each text and a wrong text for each image.

    Attributes:
        images: (M, 3, S, S) pixels that came from other processes.
        image_index: (B,) int64 rows of [own images; `images`].
        has_image: (B,) bool, False where a text has no wrong image.
        token_ids: (B, L') int64, the wrong text of each image.
        text_mask: (B, L') bool.
        has_text: (B,) bool, False where an image has no wrong text.
    """

    images: Tensor
    image_index: Tensor
    has_image: Tensor
    token_ids: Tensor
    text_mask: Tensor
    has_text: Tensor


class VLMoPretraining:
    """The Task of the third stage; everything but the mask token is trained.

    One image and one text pass through the dual encoder, whose last block computes [CLS] alone,
    and one pass through the fusion encoder over all rows that need one: pairs, texts with wrong
    images, images with wrong texts, and masked texts with their images. Its last block computes
    [CLS] or the masked words alone. Losses and gradients equal those of separate, whole passes.

    Differences from the released code, each with a test: contrastive gradients are those of the
    joined batch (there they are divided by the number of processes); pairs that share an image or
    a caption are positives in ITC and never negatives in ITM; a batch of one, or large scores,
    cannot make the drawing of negatives fail; of other processes' images only the chosen ones are
    moved; τ is clamped; MLM's weight (0.25 there) is the recipe's.
    """

    batch_keys = frozenset(
        {
            "image",
            "token_ids",
            "text_mask",
            "mlm_token_ids",
            "mlm_labels",
            "image_key",
            "caption_key",
            "index",
        }
    )
    objective_names = OBJECTIVES

    def __init__(self, model: VLMo, config: VLMoPretrainingConfig) -> None:
        check(
            model.config.fused_contrast or not config.fused_itc,
            "fused_itc",
            True,
            "be off for a model without fused_contrast",
        )
        self.config = config
        model.requires_grad_(True)
        if model.mask_token is not None:
            model.mask_token.requires_grad_(False)
        for head in (model.fused_image_projection, model.fused_text_projection):
            if head is not None:
                head.requires_grad_(config.fused_itc)
        state = nn.Module()
        start = -math.log(config.temperature)
        for name in ("logit_scale", "fused_logit_scale")[: 1 + config.fused_itc]:
            state.register_parameter(name, nn.Parameter(torch.tensor(start)))
        self.modules = nn.ModuleDict({"model": model, "state": state})
        self._watch = PairWatch()

    @property
    def model(self) -> VLMo:
        """The model that is trained."""
        return cast(VLMo, self.modules["model"])

    @property
    def logit_scales(self) -> tuple[Tensor, ...]:
        """log(1/τ) of each branch, scalars."""
        return tuple(self.modules["state"].parameters())

    def losses(
        self, batch: Mapping[str, Tensor], *, active: frozenset[str] = OBJECTIVES
    ) -> dict[str, Tensor]:
        """Return the unweighted losses of the active objectives.

        Args:
            batch: Tensors named by `batch_keys`.
            active: Objectives to compute.

        Returns:
            Scalars by name, in the order itc, itm, mlm.
        """
        is_global = self.config.negatives == "global"
        batch = cut_padding(batch, together=is_global and "itm" in active)
        scores = self.model.trunk.position_scores(batch["text_mask"].shape[1])  # of all passes
        rows = self._rows(batch, with_text=bool(active & {"itc", "itm"}))
        losses: dict[str, Tensor] = {}
        negatives = None
        if active & {"itc", "itm"}:
            with nullcontext() if "itc" in active else torch.no_grad():
                embedded = self._embed_rows(rows, scores)
            self._watch.note_embeddings(embedded.image[0], embedded.text[0])
            if "itc" in active:
                losses["itc"] = self.itc(batch, embedded)
            if "itm" in active:
                negatives = self.hard_negatives(batch, embedded)
        if active & {"itm", "mlm"}:
            losses |= self._fused_losses(batch, rows, negatives, active, scores)
        return losses

    def after_step(self, step: int) -> None:
        """Clamp the temperatures."""
        del step
        low, high = -math.log(self.config.max_temperature), -math.log(self.config.min_temperature)
        with torch.no_grad():
            for scale in self.logit_scales:
                scale.clamp_(low, high)

    def batch_vitals(self, *, spread: bool) -> dict[str, Tensor]:
        """Return scalars of the embeddings and of ITM's labels; see `PairWatch`."""
        return self._watch.take(spread=spread)

    def state_vitals(self) -> dict[str, float]:
        """Return numbers of the temperature of the own experts."""
        tau = torch.exp(-self.logit_scales[0].detach())
        return temperature_vitals(tau, self.config.min_temperature, self.config.max_temperature)

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return the embeddings of both sides, for retrieval.

        Args:
            batch: `image`, `token_ids`, `text_mask`, `index`.
        """
        embedded = self.embed(
            self.model.image_inputs(batch["image"]),
            self.model.text_inputs(batch["token_ids"]),
            batch["text_mask"],
            fused=False,
        )
        return Predictions(
            index=batch["index"].tolist(),
            embeddings={"image": embedded.image[0], "text": embedded.text[0]},
        )

    def embed(
        self,
        image: Tensor,
        text: Tensor,
        text_mask: Tensor,
        *,
        fused: bool | None = None,
        scores: Tensor | None = None,
    ) -> Embedded:
        """Run the dual encoder.

        Args:
            image: (B, N, D) inputs.
            text: (B, L, D) inputs.
            text_mask: (B, L) bool.
            fused: Whether to embed through the fused experts too; None does what ITC needs.
            scores: Of the relative positions, computed once for all passes of a step.
        """
        fused = self.config.fused_itc if fused is None else fused
        images, texts = (
            self.model.embed_both_ways(sequence, fused=fused, scores=scores)
            for sequence in (
                TokenSequence(image),
                TokenSequence(text=text, text_mask=text_mask),
            )
        )
        return Embedded(
            tuple(e for e in images if e is not None),
            tuple(e for e in texts if e is not None),
            self.logit_scales,
        )

    def itc(self, batch: Mapping[str, Tensor], embedded: Embedded) -> Tensor:
        """Return the contrastive loss over the batches of all processes; the mean of branches."""
        keys = PairKeys(batch["image_key"], batch["caption_key"])
        terms = [
            global_contrastive_loss(image, text, scale, keys=keys)
            for image, text, scale in zip(
                embedded.image, embedded.text, embedded.logit_scale, strict=True
            )
        ]
        return torch.stack(terms).mean()

    @torch.no_grad()
    def hard_negatives(self, batch: Mapping[str, Tensor], embedded: Embedded) -> HardNegatives:
        """Draw a wrong text for each image and a wrong image for each text.

        A candidate's chance is the softmax of its similarity, through the own experts. Of texts all
        ids are known everywhere; of images only the chosen ones are fetched.

        Args:
            batch: Its texts are equally wide on all processes; see `cut_padding`.
            embedded: Embeddings of the batch.
        """
        own = torch.stack([batch["image_key"], batch["caption_key"]], dim=1)  # (B, 2)
        image, text, keys = embedded.image[0], embedded.text[0], own
        ids, mask = batch["token_ids"], batch["text_mask"]
        is_global = self.config.negatives == "global"
        if is_global:
            image, text, keys, ids, mask = (all_gather(t) for t in (image, text, keys, ids, mask))
        temperature = torch.exp(-embedded.logit_scale[0])
        wrong_text, has_text = sample_hard_negatives(
            embedded.image[0], text, temperature, own, keys
        )
        wrong_image, has_image = sample_hard_negatives(
            embedded.text[0], image, temperature, own, keys
        )
        images = batch["image"][:0]
        if is_global:
            wanted = all_gather(wrong_image).view(world_size(), -1)
            exchange = RowExchange(wanted, len(own), own.device)
            images, wrong_image = exchange.fetch(batch["image"]), exchange.position
        return HardNegatives(
            images, wrong_image, has_image, ids[wrong_text], mask[wrong_text], has_text
        )

    def _rows(self, batch: Mapping[str, Tensor], *, with_text: bool) -> dict[str, Tensor]:
        """Return what both passes read of images and captions.

        Returns:
            `mask` (B, L); `image` and, if wanted, `text`: (B, N, D) and (B, L, D) inputs of the
            trunk, or, where chunks make their own, pixels and token ids.
        """
        rows = {"image": batch["image"], "mask": batch["text_mask"]}
        if with_text:
            rows["text"] = batch["token_ids"]
        if self.config.chunk_size is None:
            rows["image"] = self.model.image_inputs(rows["image"])
            if with_text:
                rows["text"] = self.model.text_inputs(rows["text"])
        return rows

    def _inputs(self, image: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the trunk's inputs of some rows."""
        if self.config.chunk_size is None:
            return image, text
        inputs = self.model.image_inputs(image)
        return inputs, None if text is None else self.model.text_inputs(text)

    def _embed_rows(self, rows: Mapping[str, Tensor], scores: Tensor | None) -> Embedded:
        """Run the dual encoder, at once or in chunks."""

        def run(image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
            image, words = self._inputs(image, text)
            assert words is not None
            embedded = self.embed(image, words, mask, scores=scores)
            return *embedded.image, *embedded.text

        given = (rows["image"], rows["text"], rows["mask"])
        found = run_in_chunks(run, *given, chunk_size=self.config.chunk_size)
        branches = len(found) // 2
        return Embedded(found[:branches], found[branches:], self.logit_scales)

    def _fused_losses(
        self,
        batch: Mapping[str, Tensor],
        rows: dict[str, Tensor],
        negatives: HardNegatives | None,
        active: frozenset[str],
        scores: Tensor | None,
    ) -> dict[str, Tensor]:
        """Fuse all rows, at once or in chunks, and average each objective's sums.

        Args:
            batch: Gives the words to predict.
            rows: See `_rows`; the others are added here.
            negatives: For ITM.
            active: Objectives.
            scores: Of the relative positions.
        """
        labels, candidates = {}, rows["image"]
        if negatives is not None:
            more = negatives.images
            if self.config.chunk_size is None:
                more = self.model.image_inputs(more)
            candidates = torch.cat([candidates, more])
            labels["itm"] = itm_labels(negatives).view(3, -1).T
            self._watch.note_matches(labels["itm"])
            rows |= {"wrong_image": negatives.image_index, "wrong_ids": negatives.token_ids}
            rows |= {"wrong_mask": negatives.text_mask, "itm_labels": labels["itm"]}
        if "mlm" in active:
            labels["mlm"] = batch["mlm_labels"]
            rows |= {"mlm_token_ids": batch["mlm_token_ids"], "mlm_labels": labels["mlm"]}

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            return self._fused_sums(dict(zip(rows, tensors, strict=True)), candidates, scores)

        sums = run_in_chunks(run, *rows.values(), chunk_size=self.config.chunk_size)
        return {
            name: mean_over_ranks(total.sum(), (labels[name] != IGNORE_INDEX).sum())
            for name, total in zip(labels, sums, strict=True)
        }

    def _fused_sums(
        self, rows: Mapping[str, Tensor], candidates: Tensor, scores: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Fuse all rows of some pairs at once and read each objective's own tokens.

        Args:
            rows: (b, ...) each, as `_fused_losses` makes them.
            candidates: What `wrong_image` points into; without chunks `image` are its first.
            scores: Of the relative positions.

        Returns:
            The sums of the cross-entropies of ITM and MLM, (1,) each, those that `rows` allow.
        """
        image, text = self._inputs(rows["image"], rows.get("text"))
        mask, size = rows["mask"], len(image)
        own = torch.arange(size, device=image.device)
        texts, masks, index, reads = [], [], [], []
        valid = None
        if "wrong_image" in rows:
            assert text is not None
            wrong_image = rows["wrong_image"]
            if self.config.chunk_size is None:
                image = candidates
            else:
                pixels = candidates.index_select(0, wrong_image)
                image = torch.cat([image, self.model.image_inputs(pixels)])
                wrong_image = own + size
            wrong = self.model.text_inputs(rows["wrong_ids"])
            texts, masks = [text, text, wrong], [mask, mask, rows["wrong_mask"]]
            index = [own, wrong_image, own]
            reads.append((slice(0, 3 * size), own.new_zeros(3 * size, 1)))
        if "mlm_labels" in rows:
            positions, valid = true_positions(is_read(rows["mlm_labels"]))
            reads.append((slice(len(index) * size, (len(index) + 1) * size), positions))
            texts.append(self.model.text_inputs(rows["mlm_token_ids"]))
            masks.append(mask)
            index.append(own)
        sequence = TokenSequence(image, *_cat_padded(texts, masks), torch.cat(index))
        states = self.model.trunk.read(sequence, reads, scores)
        sums = []
        if "wrong_image" in rows:
            logits = self.model.itm_head(self.model.pool(states[0][:, 0]))
            sums.append(token_sum(logits, rows["itm_labels"].T.flatten())[None])
        if valid is not None:
            labels = rows["mlm_labels"]
            logits = self.model.word_logits(select(states[-1], valid))
            sums.append(token_sum(logits, select(labels, is_read(labels)))[None])
        return tuple(sums)


def itm_labels(negatives: HardNegatives) -> Tensor:
    """Return (3·B,) int64 labels of [pairs; texts with wrong images; images with wrong texts]."""
    size, pairs = len(negatives.has_text), torch.zeros_like(negatives.has_text)
    none = torch.cat([pairs, ~negatives.has_image, ~negatives.has_text])
    labels = (torch.arange(3 * size, device=none.device) < size).long()
    return labels.masked_fill(none, IGNORE_INDEX)


def _cat_padded(texts: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Join rows of texts (B, L, D) and of their masks, padded on the right to the longest."""
    width = max(mask.shape[1] for mask in masks)
    return (
        torch.cat([F.pad(t, (0, 0, 0, width - t.shape[1])) for t in texts]),
        torch.cat([F.pad(m, (0, width - m.shape[1])) for m in masks]),
    )


SPEC = TaskSpec(
    config=VLMoPretrainingConfig,
    trained_for="pretraining",
    build=lambda config, model, *_: VLMoPretraining(model, config),
    collator=lambda config, inputs: PretrainingCollator(inputs.tokenizer, inputs.captions),
    needs=("image", "caption"),
    models=TrainedModels(families=("vlmo",)),
    recipes=(TaskRecipe("vlmo.pretrain", "vlmo"),),
    serves=("match", "embed", "classify"),
    also_scored=("retrieval", "zero_shot"),
    pretrains=True,
    chances=lambda config: {
        "itc": Chance(columns=True),
        "itm": ITM_CHANCE,
        "mlm": Chance(labels="mlm_labels"),
    },
    work=lambda config, sizes, tokens: vlmo_work(
        sizes,
        tokens,
        fused_itc=config.fused_itc,
        remote=config.negatives == "global",
        chunk_size=config.chunk_size,
    ),
)
